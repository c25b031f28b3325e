// Communicator and Pending for Python. The GIL is released wherever a call may wait for another rank.
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "comm/c10d_process_group.h"
#include "comm/communicator.h"
#include "comm/recording_communicator.h"
#include "comm/torch_communicator.h"

namespace deepscale {
namespace {

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

/// Pending as a Python object: when Python drops it unwaited, its destructor waits without the GIL.
class PyPending {
 public:
  explicit PyPending(Pending pending) : pending_(std::move(pending)) {}
  ~PyPending() {
    if (PyGILState_Check() != 0) {
      const py::gil_scoped_release release;
      pending_ = Pending();
    }
  }
  void wait() { pending_.wait(); }
  void wait_released() { pending_.wait_released(); }

 private:
  Pending pending_;
};

using PendingPtr = std::unique_ptr<PyPending>;

PendingPtr wrap(Pending pending) {
  return std::make_unique<PyPending>(std::move(pending));
}

ReduceOp parse_op(const std::string& name) {
  for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kAvg, ReduceOp::kMax, ReduceOp::kMin, ReduceOp::kProduct}) {
    if (name == name_of(op)) return op;
  }
  ds_throw<CommError>("op must be 'sum', 'avg', 'max', 'min' or 'product', got '{}'", name);
}

at::Device parse_device(const py::object& device) {
  if (py::isinstance<py::str>(device)) return at::Device(device.cast<std::string>());
  return device.cast<at::Device>();
}

at::ScalarType parse_dtype(const py::object& dtype) {
  return torch::python::detail::py_object_to_dtype(dtype);
}

/// A group's threads may wait for the interpreter's lock, to let go of a tensor; who ends them must not hold it.
void end_without_lock(ProcessGroup* group) {
  if (Py_IsInitialized() == 0 || PyGILState_Check() == 0) {
    delete group;
    return;
  }
  const py::gil_scoped_release release;
  delete group;
}

Communicator from_process_group(const c10::intrusive_ptr<c10d::ProcessGroup>& group, std::optional<double> timeout_s,
                                bool use_host) {
  std::optional<std::chrono::milliseconds> timeout;
  if (timeout_s) timeout = std::chrono::milliseconds(static_cast<int64_t>(*timeout_s * 1000));
  const std::shared_ptr<ProcessGroup> wrapped(ProcessGroup::wrap(group, timeout).release(), end_without_lock);
  return make_torch_communicator(wrapped, use_host ? HostUse::kAuto : HostUse::kNever);
}

void register_operations(py::class_<Communicator>& communicator) {
  const auto tag = py::arg("tag") = "";
  communicator
      .def(
          "all_reduce",
          [](const Communicator& self, const at::Tensor& tensor, const std::string& op, const std::string& tag) {
            return wrap(self.all_reduce(tensor, parse_op(op), tag));
          },
          py::arg("tensor"), py::arg("op"), tag, ReleaseGil())
      .def(
          "reduce_scatter",
          [](const Communicator& self, const at::Tensor& input, const at::Tensor& output, const std::string& op,
             const std::string& tag) { return wrap(self.reduce_scatter(input, output, parse_op(op), tag)); },
          py::arg("input"), py::arg("output"), py::arg("op"), tag, ReleaseGil())
      .def(
          "all_gather",
          [](const Communicator& self, const at::Tensor& input, const at::Tensor& output, const std::string& tag) {
            return wrap(self.all_gather(input, output, tag));
          },
          py::arg("input"), py::arg("output"), tag, ReleaseGil())
      .def(
          "broadcast",
          [](const Communicator& self, const at::Tensor& tensor, int root, const std::string& tag) {
            return wrap(self.broadcast(tensor, root, tag));
          },
          py::arg("tensor"), py::arg("root"), tag, ReleaseGil())
      .def(
          "all_to_all",
          [](const Communicator& self, const at::Tensor& input, const at::Tensor& output, const std::string& tag) {
            return wrap(self.all_to_all(input, output, tag));
          },
          py::arg("input"), py::arg("output"), tag, ReleaseGil())
      .def(
          "send",
          [](const Communicator& self, const at::Tensor& tensor, int peer, const std::string& tag) {
            return wrap(self.send(tensor, peer, tag));
          },
          py::arg("tensor"), py::arg("peer"), tag, ReleaseGil())
      .def(
          "recv",
          [](const Communicator& self, const at::Tensor& tensor, int peer, const std::string& tag) {
            return wrap(self.recv(tensor, peer, tag));
          },
          py::arg("tensor"), py::arg("peer"), tag, ReleaseGil())
      .def(
          "barrier", [](const Communicator& self, const std::string& tag) { self.barrier(tag); }, tag, ReleaseGil());
}

void register_memory(py::class_<Communicator>& communicator) {
  communicator
      .def(
          "allocate",
          [](const Communicator& self, int64_t numel, const py::object& dtype, const py::object& device) {
            return self.allocate(numel, parse_dtype(dtype), parse_device(device));
          },
          py::arg("numel"), py::arg("dtype"), py::arg("device") = "cpu")
      .def(
          "allocate_common",
          [](const Communicator& self, int64_t numel, const py::object& dtype, const py::object& device) {
            const at::ScalarType type = parse_dtype(dtype);
            const at::Device where = parse_device(device);
            const py::gil_scoped_release release;
            return self.allocate_common(numel, type, where);
          },
          py::arg("numel"), py::arg("dtype"), py::arg("device") = "cpu");
}

}  // namespace

void register_comm(py::module_& m) {
  py::class_<PyPending>(m, "Pending")
      .def("wait", &PyPending::wait, ReleaseGil())
      .def("wait_released", &PyPending::wait_released, ReleaseGil());

  py::class_<OperationLog, std::shared_ptr<OperationLog>>(m, "OperationLog")
      .def(py::init<>())
      .def_property("enabled", &OperationLog::enabled, &OperationLog::enable)
      .def("take", [](OperationLog& self) {
        std::vector<std::tuple<std::string, int64_t, int, double>> entries;
        for (const auto& [operation, bytes, ranks, milliseconds] : self.take())
          entries.emplace_back(operation, bytes, ranks, milliseconds);
        return entries;
      });
  py::class_<Communicator> communicator(m, "Communicator");
  communicator.def_static("self_world", &Communicator::self)
      .def_static("from_process_group", &from_process_group, py::arg("group"), py::arg("timeout_s") = py::none(),
                  py::arg("use_host") = true, ReleaseGil())
      .def_property_readonly("rank", &Communicator::rank)
      .def_property_readonly("size", &Communicator::size)
      .def_property_readonly("shares_memory", &Communicator::shares_memory)
      .def_property_readonly("description", &Communicator::description)
      .def_property_readonly("bytes_moved", &Communicator::bytes_moved)
      .def_property_readonly(
          "timeout_s", [](const Communicator& self) { return std::chrono::duration<double>(self.timeout()).count(); })
      .def("subgroup", &Communicator::subgroup, py::arg("ranks"), ReleaseGil())
      .def("recorded", &recorded, py::arg("log"))
      .def("__repr__", [](const Communicator& self) { return fmt::format("<Communicator: {}>", self.description()); });
  register_operations(communicator);
  register_memory(communicator);
}

}  // namespace deepscale
