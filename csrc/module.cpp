// The Python module `ficoco_ext._C_torch<release>`: importing it loads the kernels, its attributes say how they were
// built.
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "cpu/simd.h"
#ifdef FICOCO_WITH_CUDA
#include <cuda_runtime_api.h>

#include "launch.h"
#endif

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.attr("torch_version") = TORCH_VERSION;
#if defined(__clang__)
  m.attr("compiler") = "clang " __clang_version__;
#else
  m.attr("compiler") = "gcc " __VERSION__;
#endif
  m.attr("cpu_simd") = ficoco::simd.name;
#ifdef FICOCO_WITH_CUDA
  m.attr("cuda_version") = CUDART_VERSION;
  m.attr("cuda_archs") = FICOCO_CUDA_ARCHS;
  m.def("cuda_launches", &ficoco::launch_count, "Kernels launched by this process so far.");
#endif
}
