// What every bind_*.cpp includes, and the target's precompiled header: torch/extension.h alone takes 50 s to parse.
// A part of the module is a file bind_<part>.cpp with register_<part>, declared here and listed in CMakeLists.txt.
#pragma once

#include <torch/extension.h>

namespace deepscale {

namespace py = pybind11;

void register_errors(py::module_& m);  // first: the others may throw
void register_aio(py::module_& m);
void register_comm(py::module_& m);
void register_config(py::module_& m);
void register_engine(py::module_& m);
void register_optimizers(py::module_& m);
void register_inference(py::module_& m);
void register_plan(py::module_& m);
void register_checkpoint(py::module_& m);

}  // namespace deepscale
