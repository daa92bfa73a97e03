// Copies to, from and on a GPU, through the CUDA driver (libcuda.so.1), which is opened when a copy
// is first needed: the addon is built without CUDA and loads where there is no driver.
#pragma once

#include <cstddef>

namespace fla::cuda {

// Each waits until the copy is done. `device` is the number of the GPU. Throws an OrtFailure.
void to_host(int device, void* to, const void* from, size_t bytes);
void to_device(int device, void* to, const void* from, size_t bytes);
void on_device(int device, void* to, const void* from, size_t bytes);
void zero(int device, void* to, size_t bytes);

}  // namespace fla::cuda
