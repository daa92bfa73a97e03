// Build notes: include() ops/common/sources.cmake, which lists the sources and gives each ISA file
// its flags. Compile everything with -fvisibility=hidden and C++17; the repository root is the
// include path.
#include "ops/common/cpu.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "ops/common/scratch.h"

namespace fla {
namespace {

const char* detect_isa() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
#else
  const bool avx2 = false, avx512 = false;
#endif
  const char* wanted = std::getenv("FLA_CPU_ISA");
  if (wanted && !std::strcmp(wanted, "portable")) return "portable";
  if (avx512 && !(wanted && !std::strcmp(wanted, "avx2"))) return "avx512";
  return avx2 ? "avx2" : "portable";
}

constexpr size_t kAlign = 64;

// Header in front of every scratch block; padded so that the payload stays aligned.
struct alignas(kAlign) Block {
  Block* next;
  size_t bytes;
  size_t used;  // what was asked for
};

std::mutex pool_mutex;
Block* pool = nullptr;
size_t in_use = 0, peak = 0;  // bytes handed out

// Takes the first free block that is large enough out of the pool.
Block* take(size_t bytes) {
  std::lock_guard<std::mutex> lock(pool_mutex);
  in_use += bytes;
  if (in_use > peak) peak = in_use;
  for (Block** link = &pool; *link; link = &(*link)->next) {
    Block* block = *link;
    if (block->bytes < bytes) continue;
    *link = block->next;
    return block;
  }
  if (!pool) return nullptr;
  // Nothing fits: let one small block go, so that the pool does not grow with every new shape.
  Block* small = pool;
  pool = small->next;
  ::operator delete(small, std::align_val_t(kAlign));
  return nullptr;
}

}  // namespace

const char* cpu_isa() {
  static const char* isa = detect_isa();
  return isa;
}

void* scratch_acquire(size_t bytes) {
  Block* block = take(bytes);
  if (!block) {
    block = static_cast<Block*>(
        ::operator new(sizeof(Block) + bytes, std::align_val_t(kAlign), std::nothrow));
    if (!block) {
      std::lock_guard<std::mutex> lock(pool_mutex);
      in_use -= bytes;
      return nullptr;
    }
    block->bytes = bytes;
  }
  block->used = bytes;
  return block + 1;
}

void scratch_release(void* memory) {
  Block* block = static_cast<Block*>(memory) - 1;
  std::lock_guard<std::mutex> lock(pool_mutex);
  in_use -= block->used;
  block->next = pool;
  pool = block;
}

size_t scratch_peak() {
  std::lock_guard<std::mutex> lock(pool_mutex);
  const size_t bytes = peak;
  peak = in_use;
  return bytes;
}

}  // namespace fla
