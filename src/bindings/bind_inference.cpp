// Packed weights and their products for Python; contracts in inference/packed_weight.h.
#include "bindings/bindings.h"
#include "inference/packed_weight.h"
#include "platform/resources.h"

namespace deepscale {

void register_inference(py::module_& m) {
  using py::arg;
  const py::call_guard<py::gil_scoped_release> release;
  py::class_<PackedShape>(m, "PackedShape")
      .def(py::init([](int64_t rows, int64_t cols, int bits, int64_t group_size, bool symmetric) {
             const PackedShape shape{rows, cols, bits, group_size, symmetric};
             check_packed_shape(shape);
             return shape;
           }),
           arg("rows"), arg("cols"), arg("bits"), arg("group_size"), arg("symmetric") = false)
      .def(py::pickle(
          [](const PackedShape& s) { return py::make_tuple(s.rows, s.cols, s.bits, s.group_size, s.symmetric); },
          [](const py::tuple& state) {
            const PackedShape shape{state[0].cast<int64_t>(), state[1].cast<int64_t>(), state[2].cast<int>(),
                                    state[3].cast<int64_t>(), state[4].cast<bool>()};
            check_packed_shape(shape);
            return shape;
          }))
      .def_readonly("rows", &PackedShape::rows)
      .def_readonly("cols", &PackedShape::cols)
      .def_readonly("bits", &PackedShape::bits)
      .def_readonly("group_size", &PackedShape::group_size)
      .def_readonly("symmetric", &PackedShape::symmetric)
      .def("numel", [](const PackedShape& shape, const py::object& dtype) {
        return shape.numel(torch::python::detail::py_object_to_dtype(dtype));
      });
  m.def("pack_weight", &pack_weight, arg("weight"), arg("shape"), release);
  m.def("unpack_weight", &unpack_weight, arg("packed"), arg("shape"), release);
  m.def("packed_linear", &packed_linear, arg("x"), arg("packed"), arg("shape"), arg("bias") = py::none(), release);
  m.def("packed_embedding", &packed_embedding, arg("ids"), arg("packed"), arg("shape"), release);
  m.def("few_rows_linear", &few_rows_linear, arg("x"), arg("weight"), arg("bias") = py::none(), release);
  m.def("available_memory", [] { return process_memory_facts().available_bytes; });
}

}  // namespace deepscale
