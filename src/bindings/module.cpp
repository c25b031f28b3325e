// The extension module deepspeed._C; python/deepspeed/_C.pyi is its contract.
#include "bindings/bindings.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "The C++ core of DeepScale";
#define DEEPSCALE_REGISTER(part) deepscale::register_##part(m);
  DEEPSCALE_BINDING_PARTS  // from CMakeLists.txt
#undef DEEPSCALE_REGISTER
}
