// The Python module `ficoco_ext._C_torch<release>`: importing it loads the kernels, its attributes say how they were
// built. It asks for nothing beyond Python's stable ABI, so that one build serves every Python from 3.10 on.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <torch/version.h>

#include "cpu/simd.h"
#ifdef FICOCO_WITH_CUDA
#include <cuda_runtime_api.h>

#include "cuda/launch.h"
#endif

#if defined(__clang__)
#define FICOCO_COMPILER "clang " __clang_version__
#else
#define FICOCO_COMPILER "gcc " __VERSION__
#endif
#define FICOCO_PASTE(a, b) a##b
#define FICOCO_INIT(name) FICOCO_PASTE(PyInit_, name)

namespace {

#ifdef FICOCO_WITH_CUDA
PyObject* cuda_launches(PyObject*, PyObject*) {
  return PyLong_FromUnsignedLongLong(static_cast<unsigned long long>(ficoco::launch_count()));
}

PyMethodDef functions[] = {
    {"cuda_launches", cuda_launches, METH_NOARGS, "Kernels launched by this process so far."},
    {nullptr, nullptr, 0, nullptr},
};
#endif

int fill(PyObject* module) {
  if (PyModule_AddStringConstant(module, "torch_version", TORCH_VERSION) < 0 ||
      PyModule_AddStringConstant(module, "compiler", FICOCO_COMPILER) < 0 ||
      PyModule_AddStringConstant(module, "cpu_simd", ficoco::simd.name) < 0) {
    return -1;
  }
#ifdef FICOCO_WITH_CUDA
  if (PyModule_AddIntConstant(module, "cuda_version", CUDART_VERSION) < 0 ||
      PyModule_AddStringConstant(module, "cuda_archs", FICOCO_CUDA_ARCHS) < 0 ||
      PyModule_AddFunctions(module, functions) < 0) {
    return -1;
  }
#endif
  return 0;
}

PyModuleDef_Slot slots[] = {{Py_mod_exec, reinterpret_cast<void*>(fill)}, {0, nullptr}};
PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "ficoco_ext._C", nullptr, 0, nullptr, slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC FICOCO_INIT(TORCH_EXTENSION_NAME)() { return PyModuleDef_Init(&definition); }
