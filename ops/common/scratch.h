// Work memory for kernels: 64-byte aligned blocks, kept for the next call so that a decode loop
// never touches the allocator.
#ifndef FLA_OPS_COMMON_SCRATCH_H_
#define FLA_OPS_COMMON_SCRATCH_H_

#include <cstddef>

namespace fla {

// At least `bytes` bytes with undefined contents, or null when memory ran out. Thread safe.
void* scratch_acquire(size_t bytes);
void scratch_release(void* block);

// Most bytes that were handed out at one time since the last call. Thread safe.
size_t scratch_peak();

}  // namespace fla

#endif  // FLA_OPS_COMMON_SCRATCH_H_
