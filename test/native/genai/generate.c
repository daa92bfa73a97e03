/*
 * Runs onnxruntime-genai as an application would and prints what it said, as JSON:
 *
 *     generate <libonnxruntime-genai.so> <folder with genai_config.json> <steps> <prompt>
 * [<prompt>...]
 *
 * A prompt is token ids with commas between them. Several are one batch, which genai pads. What
 * stands behind a `+` is appended when `steps` tokens are generated, and as many are generated
 * again; behind a `/` the same after going back to the start, and behind a `<` after going back by
 * one token. Printed are the tokens of each row, prompt included, and the logits
 * [rows,1,vocabulary] by which each step chose.
 *
 * The functions are looked up by name, so that neither genai's header nor its library is needed to
 * compile this.
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 4096, FLOAT32 = 1 };

static void* library;

static void* symbol(const char* name) {
  void* found = dlsym(library, name);
  if (!found) {
    fprintf(stderr, "%s: not in the library\n", name);
    exit(1);
  }
  return found;
}

/* A function of ort_genai_c.h, by its name and type. */
#define OGA(result, name, ...) ((result(*)(__VA_ARGS__))symbol(#name))

static void check(void* result) {
  if (!result) return;
  fprintf(stderr, "%s\n", OGA(const char*, OgaResultGetError, void*)(result));
  exit(1);
}

static void check_that(bool holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "%s\n", what);
  exit(1);
}

/* Numbers up to the end of the text or of a part; gives where that is. */
static const char* read_tokens(const char* text, int32_t* tokens, size_t* count) {
  for (*count = 0; *text && !strchr("+/<", *text); ++*count) {
    char* end;
    check_that(*count < MAX_TOKENS, "a prompt is too long");
    tokens[*count] = (int32_t)strtol(text, &end, 10);
    check_that(end != text, "a prompt must be numbers with commas between them");
    text = *end == ',' ? end + 1 : end;
  }
  return text;
}

static void* get_logits(void* generator) {
  void* logits;
  check(OGA(void*, OgaGenerator_GetLogits, void*, void**)(generator, &logits));
  return logits;
}

static void destroy_tensor(void* tensor) { OGA(void, OgaDestroyTensor, void*)(tensor); }

static void print_logits(void* generator, int rows, bool first) {
  void* logits = get_logits(generator);
  int32_t type;
  size_t rank, count = 1;
  int64_t shape[8];
  const float* data;
  check(OGA(void*, OgaTensorGetType, void*, int32_t*)(logits, &type));
  check(OGA(void*, OgaTensorGetShapeRank, void*, size_t*)(logits, &rank));
  check(OGA(void*, OgaTensorGetShape, void*, int64_t*, size_t)(logits, shape, rank));
  check(OGA(void*, OgaTensorGetData, void*, void**)(logits, (void**)&data));
  check_that(type == FLOAT32 && rank == 3 && shape[0] == rows,
             "logits are not float32 [rows,tokens,vocabulary]");
  for (size_t i = 0; i < rank; ++i) count *= (size_t)shape[i];
  printf(first ? "[" : ",\n[");
  for (size_t i = 0; i < count; ++i) printf(i ? ",%.9g" : "%.9g", data[i]);
  printf("]");
  destroy_tensor(logits);
}

/* Appends the next part of each prompt, and moves on to what stands behind it. */
static void append(void* generator, const char** prompts, size_t rows) {
  static int32_t tokens[MAX_TOKENS];
  void* sequences;
  size_t count;
  check(OGA(void*, OgaCreateSequences, void**)(&sequences));
  for (size_t row = 0; row < rows; ++row) {
    prompts[row] = read_tokens(prompts[row], tokens, &count);
    check(OGA(void*, OgaAppendTokenSequence, const int32_t*, size_t, void*)(tokens, count,
                                                                            sequences));
  }
  check(OGA(void*, OgaGenerator_AppendTokenSequences, void*, void*)(generator, sequences));
  OGA(void, OgaDestroySequences, void*)(sequences);
}

/* Makes ready for the part of a prompt that stands behind `how`. */
static void turn_to(void* generator, char how) {
  const size_t count = OGA(size_t, OgaGenerator_TokenCount, void*)(generator);
  if (how != '+')
    check(OGA(void*, OgaGenerator_RewindTo, void*, size_t)(generator, how == '/' ? 0 : count - 1));
  if (how == '+')
    destroy_tensor(get_logits(generator)); /* or genai never reads the token that it chose last */
}

int main(int argc, char** argv) {
  const int rows = argc - 4;
  check_that(rows > 0, "usage: generate <library> <folder> <steps> <prompt> [<prompt>...]");
  const char** prompts = (const char**)argv + 4;
  const int steps = atoi(argv[3]);
  library = dlopen(argv[1], RTLD_NOW);
  check_that(library != NULL, library ? "" : dlerror());

  void *model, *params, *generator;
  check(OGA(void*, OgaCreateModel, const char*, void**)(argv[2], &model));
  check(OGA(void*, OgaCreateGeneratorParams, void*, void**)(model, &params));
  check(OGA(void*, OgaGeneratorParamsSetSearchNumber, void*, const char*, double)(
      params, "batch_size", rows));
  check(OGA(void*, OgaCreateGenerator, void*, void*, void**)(model, params, &generator));

  printf("{\"logits\": [");
  for (bool first = true; first || *prompts[0];) {
    const char how = *prompts[0];
    for (int row = 0; !first && row < rows; ++row)
      check_that(*prompts[row]++ == how, "all prompts must have the same parts");
    if (!first) turn_to(generator, how);
    append(generator, prompts, (size_t)rows);
    for (int step = 0; step < steps; ++step, first = false) {
      print_logits(generator, rows, first);
      check(OGA(void*, OgaGenerator_GenerateNextToken, void*)(generator));
    }
  }
  printf("],\n\"tokens\": [");
  for (int row = 0; row < rows; ++row) {
    const size_t count =
        OGA(size_t, OgaGenerator_GetSequenceCount, void*, size_t)(generator, (size_t)row);
    const int32_t* data =
        OGA(const int32_t*, OgaGenerator_GetSequenceData, void*, size_t)(generator, (size_t)row);
    printf(row ? ", [" : "[");
    for (size_t i = 0; i < count; ++i) printf(i ? ",%d" : "%d", data[i]);
    printf("]");
  }
  printf("]}\n");
  OGA(void, OgaDestroyGenerator, void*)(generator);
  OGA(void, OgaDestroyGeneratorParams, void*)(params);
  OGA(void, OgaDestroyModel, void*)(model);
  OGA(void, OgaShutdown, void)();
  return 0;
}
