// Decodes token by token with com.fla.LinearAttention through ONNX Runtime's C API:
//
//   decode build/native/libfla_ops.so model.onnx TOKENS
//
// The model has float32 inputs query [1,1,N], key [1,1,N], value [1,1,N] and past_state [1,H,K,V],
// and outputs output and present_state. Each step's present_state is the next step's past_state, so
// memory does not grow with the length. Prints one line per token: the output's elements.
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_RANK 8

static const OrtApi* ort;

static void check(OrtStatus* status) {
  if (!status) return;
  fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
  exit(1);
}

// The declared shape of input `index`; returns its number of elements.
static size_t input_shape(const OrtSession* session, size_t index, int64_t* dims, size_t* rank) {
  OrtTypeInfo* type;
  const OrtTensorTypeAndShapeInfo* info;
  check(ort->SessionGetInputTypeInfo(session, index, &type));
  check(ort->CastTypeInfoToTensorInfo(type, &info));
  check(ort->GetDimensionsCount(info, rank));
  check(ort->GetDimensions(info, dims, *rank));
  ort->ReleaseTypeInfo(type);
  size_t count = 1;
  for (size_t i = 0; i < *rank; ++i) count *= (size_t)dims[i];
  return count;
}

// A tensor of the declared shape of input `index`, zeros. Returns its elements.
static float* make_input(const OrtSession* session, size_t index, OrtValue** value, size_t* count) {
  OrtAllocator* allocator;
  int64_t dims[MAX_RANK];
  size_t rank;
  void* data;
  check(ort->GetAllocatorWithDefaultOptions(&allocator));
  *count = input_shape(session, index, dims, &rank);
  check(ort->CreateTensorAsOrtValue(allocator, dims, rank, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                    value));
  check(ort->GetTensorMutableData(*value, &data));
  for (size_t i = 0; i < *count; ++i) ((float*)data)[i] = 0;
  return data;
}

// Something to feed: the same numbers on every run.
static float sample(size_t token, size_t input, size_t i) {
  return (float)((token * 31 + input * 17 + i * 7) % 23) / 11.0f - 1.0f;
}

int main(int argc, char** argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: decode LIBRARY MODEL TOKENS\n");
    return 2;
  }
  ort = OrtGetApiBase()->GetApi(18);
  if (!ort) {
    fprintf(stderr, "ONNX Runtime 1.18 or newer is needed\n");
    return 1;
  }
  OrtEnv* env;
  OrtSessionOptions* options;
  OrtSession* session;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "decode", &env));
  check(ort->CreateSessionOptions(&options));
  check(ort->RegisterCustomOpsLibrary_V2(options, argv[1]));  // all it takes
  check(ort->CreateSession(env, argv[2], options, &session));

  const char* const inputs[] = {"query", "key", "value", "past_state"};
  const char* const outputs[] = {"output", "present_state"};
  OrtValue* feeds[4];
  float* data[4];
  size_t counts[4];
  for (size_t i = 0; i < 4; ++i) data[i] = make_input(session, i, &feeds[i], &counts[i]);

  const size_t tokens = strtoul(argv[3], NULL, 10);
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < 3; ++i) {
      for (size_t j = 0; j < counts[i]; ++j) data[i][j] = sample(t, i, j);
    }
    OrtValue* results[2] = {NULL, NULL};
    check(ort->Run(session, NULL, inputs, (const OrtValue* const*)feeds, 4, outputs, 2, results));
    void* output;
    check(ort->GetTensorMutableData(results[0], &output));
    for (size_t j = 0; j < counts[2]; ++j) printf(j ? " %.9g" : "%.9g", ((float*)output)[j]);
    printf("\n");
    ort->ReleaseValue(results[0]);
    ort->ReleaseValue(feeds[3]);
    feeds[3] = results[1];
  }

  for (size_t i = 0; i < 4; ++i) ort->ReleaseValue(feeds[i]);
  ort->ReleaseSession(session);
  ort->ReleaseSessionOptions(options);
  ort->ReleaseEnv(env);
  return 0;
}
