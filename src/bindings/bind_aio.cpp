// Tensors from and to files: aio_handle, pin_handle and their functions, under DeepSpeed's names. The GIL is released
// while a call opens, moves or waits.
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "bindings/bindings.h"
#include "memory/io_calibration.h"
#include "memory/io_handle.h"

namespace deepscale {
namespace {

constexpr int64_t kDeepSpeedAlignment = 512;

void check_tensor(const at::Tensor& tensor, const char* name) {
  DS_CHECK(tensor.layout() == at::kStrided && tensor.is_contiguous(),
           "{} must be a contiguous tensor, found strides {} for shape {}; call contiguous() first", name,
           c10::str(tensor.strides()), c10::str(tensor.sizes()));
}

int64_t bytes_for(int64_t numel, const at::Tensor& example) {
  const auto item = static_cast<int64_t>(example.element_size());
  DS_CHECK(numel >= 0 && numel <= std::numeric_limits<int64_t>::max() / item,
           "num_elem must be a number of elements that is not negative, found {}", numel);
  return numel * item;
}

at::Tensor pinned_tensor(std::shared_ptr<char> memory, int64_t numel, const at::Tensor& example) {
  void* const data = memory.get();
  const auto options = at::TensorOptions().dtype(example.scalar_type());
  return at::from_blob(
      data, {numel}, [owner = std::move(memory)](void*) mutable { owner.reset(); }, options);
}

bool is_pinned(const PinnedBuffers& buffers, const at::Tensor& tensor) {
  if (!tensor.is_cpu()) return false;
  return buffers.is_pinned(tensor.const_data_ptr(), static_cast<int64_t>(tensor.nbytes())) || tensor.is_pinned();
}

/// A name (str, bytes or os.PathLike) or a descriptor.
std::variant<std::string, int> place_of(const py::object& file) {
  if (py::isinstance<py::int_>(file)) return file.cast<int>();
  const std::string name = py::bytes(py::module_::import("os").attr("fsencode")(file));
  if (name.find('\0') != std::string::npos)
    throw py::value_error("a file's name has no null byte: " + std::string(py::repr(file)));
  return name;
}

/// What the handles of this module share.
struct Shared {
  std::shared_ptr<PinnedBuffers> buffers = std::make_shared<PinnedBuffers>();  // one count for all
  std::once_flag engine_told;

  void tell(const AsyncEngineChoice& choice) {
    if (choice.engine != AsyncEngine::kThreads || choice.asked) return;
    std::call_once(engine_told, [&choice] {
      Logger().warning("files are read and written by threads, which is slower than io_uring: {}", choice.reason);
    });
  }
};

class AioHandle {
 public:
  AioHandle(int64_t block_size, int64_t queue_depth, bool single_submit, bool overlap_events,
            int64_t intra_op_parallelism, Shared& shared)
      : options_{block_size, queue_depth, intra_op_parallelism},
        single_submit_(single_submit),
        overlap_events_(overlap_events),
        handle_(std::in_place, options_, shared.buffers) {
    shared.tell(handle_->engine());
  }

  ~AioHandle() {
    if (PyGILState_Check() != 0) {
      const py::gil_scoped_release release;
      handle_.reset();  // waits
    }
  }

  int64_t read_whole(const at::Tensor& buffer, const py::object& file, bool validate, int64_t file_offset) {
    const IoRequest request = {place_of(file), file_offset, validate};
    const py::gil_scoped_release release;
    handle_->read(destination(buffer), request, IoLength::kWhole);
    return 0;
  }

  int64_t write_whole(const at::Tensor& buffer, const py::object& file, bool validate, int64_t file_offset) {
    const IoRequest request = {place_of(file), file_offset, validate};
    const py::gil_scoped_release release;
    handle_->write(source(buffer), request);
    return 0;
  }

  int64_t pread(const at::Tensor& buffer, const py::object& file, bool validate, bool later, int64_t file_offset) {
    const IoRequest request = {place_of(file), file_offset, validate};
    const py::gil_scoped_release release;
    if (later) {
      handle_->start_read(destination(buffer), request);
      return 0;
    }
    handle_->read(destination(buffer), request);
    return 1;
  }

  int64_t pwrite(const at::Tensor& buffer, const py::object& file, bool validate, bool later, int64_t file_offset) {
    const IoRequest request = {place_of(file), file_offset, validate};
    const py::gil_scoped_release release;
    if (later) {
      handle_->start_write(source(buffer), request);
      return 0;
    }
    handle_->write(source(buffer), request);
    return 1;
  }

  int64_t wait() { return handle_->wait(); }

  at::Tensor new_cpu_locked_tensor(int64_t numel, const at::Tensor& example) {
    return pinned_tensor(handle_->allocate(bytes_for(numel, example)), numel, example);
  }
  bool free_cpu_locked_tensor(const at::Tensor& tensor) { return handle_->buffers().free(tensor.storage().data()); }
  [[nodiscard]] bool holds_pinned(const at::Tensor& tensor) { return is_pinned(handle_->buffers(), tensor); }

  [[nodiscard]] int64_t block_size() const { return options_.block_bytes; }
  [[nodiscard]] int64_t queue_depth() const { return options_.queue_depth; }
  [[nodiscard]] bool single_submit() const { return single_submit_; }
  [[nodiscard]] bool overlap_events() const { return overlap_events_; }
  [[nodiscard]] int64_t intra_op_parallelism() const { return options_.intra_op_parallelism; }
  [[nodiscard]] int64_t alignment() const { return kDeepSpeedAlignment * options_.intra_op_parallelism; }

 private:
  static IoBuffer over(const at::Tensor& tensor) {
    return {static_cast<char*>(tensor.data_ptr()), static_cast<int64_t>(tensor.nbytes()),
            std::make_shared<at::Tensor>(tensor)};
  }

  /// Pinned memory of the host for a tensor on a device.
  at::Tensor host_copy_of(const at::Tensor& tensor) {
    return new_cpu_locked_tensor(tensor.numel(), tensor).view(tensor.sizes());
  }

  IoBuffer source(const at::Tensor& buffer) {
    check_tensor(buffer, "buffer");
    if (buffer.is_cpu()) return over(buffer);
    const at::Tensor host = host_copy_of(buffer);
    host.copy_(buffer);
    return over(host);
  }

  IoBuffer destination(const at::Tensor& buffer) {
    check_tensor(buffer, "buffer");
    if (buffer.is_cpu()) return over(buffer);
    const at::Tensor host = host_copy_of(buffer);
    IoBuffer bytes = over(host);
    bytes.arrived = [buffer, host] { buffer.detach().copy_(host); };
    return bytes;
  }

  IoHandleOptions options_;
  bool single_submit_;   // these two change nothing: requests are always handed over together and collected as they
  bool overlap_events_;  // come
  std::optional<IoHandle> handle_;
};

int64_t aio_read(Shared& shared, const at::Tensor& buffer, const py::object& file, int64_t block_size,
                 int64_t queue_depth, bool validate) {
  return AioHandle(block_size, queue_depth, false, false, 1, shared).read_whole(buffer, file, validate, 0);
}

int64_t aio_write(Shared& shared, const at::Tensor& buffer, const py::object& file, int64_t block_size,
                  int64_t queue_depth, bool validate) {
  return AioHandle(block_size, queue_depth, false, false, 1, shared).write_whole(buffer, file, validate, 0);
}

int64_t memory_copy(const at::Tensor& dest, const at::Tensor& src) {
  check_tensor(dest, "dest");
  check_tensor(src, "src");
  DS_CHECK(dest.is_cpu() && src.is_cpu() && dest.nbytes() == src.nbytes(),
           "deepspeed_memcpy copies between CPU tensors of the same size, found {} bytes on {} and {} bytes on {}",
           dest.nbytes(), dest.device().str(), src.nbytes(), src.device().str());
  std::memmove(dest.data_ptr(), src.const_data_ptr(), src.nbytes());
  return 0;
}

/// pin_handle: pinned tensors without files.
class PinHandle {
 public:
  explicit PinHandle(std::shared_ptr<PinnedBuffers> buffers) : buffers_(std::move(buffers)) {}

  at::Tensor allocate(int64_t numel, const at::Tensor& example) {
    return pinned_tensor(buffers_->allocate(bytes_for(numel, example)), numel, example);
  }
  bool free(const at::Tensor& tensor) { return buffers_->free(tensor.storage().data()); }
  bool free_address(uintptr_t address) { return buffers_->free(reinterpret_cast<const void*>(address)); }
  [[nodiscard]] bool holds(const at::Tensor& tensor) const { return is_pinned(*buffers_, tensor); }

 private:
  std::shared_ptr<PinnedBuffers> buffers_;
};

py::dict tuned_settings(const std::string& folder) {
  const IoCalibration found = [&folder] {
    const py::gil_scoped_release release;
    return tuned_io(folder);
  }();
  using py::literals::operator""_a;
  return py::dict("block_size"_a = found.settings.block_bytes, "queue_depth"_a = found.settings.depth,
                  "read_bytes_per_s"_a = found.read_bytes_per_s, "write_bytes_per_s"_a = found.write_bytes_per_s,
                  "remembered"_a = found.remembered, "seconds"_a = found.seconds, "reason"_a = found.reason);
}

/// Which engine moves bytes here, and why it is not the best one.
std::pair<std::string, std::string> aio_engine() {
  const AsyncEngineChoice choice = choose_async_engine();
  return {async_engine_name(choice.engine), choice.reason};
}

py::class_<AioHandle> register_handle(py::module_& m, const std::shared_ptr<Shared>& shared) {
  const py::call_guard<py::gil_scoped_release> release;
  py::class_<AioHandle> handle(m, "aio_handle");
  handle
      .def(py::init([shared](int64_t block_size, int64_t queue_depth, bool single_submit, bool overlap_events,
                             int64_t parallelism) {
             return std::make_unique<AioHandle>(block_size, queue_depth, single_submit, overlap_events, parallelism,
                                                *shared);
           }),
           py::arg("block_size") = 1 << 20, py::arg("queue_depth") = 128, py::arg("single_submit") = false,
           py::arg("overlap_events") = false, py::arg("intra_op_parallelism") = 1)
      .def("get_block_size", &AioHandle::block_size)
      .def("get_queue_depth", &AioHandle::queue_depth)
      .def("get_single_submit", &AioHandle::single_submit)
      .def("get_overlap_events", &AioHandle::overlap_events)
      .def("get_intra_op_parallelism", &AioHandle::intra_op_parallelism)
      .def("get_alignment", &AioHandle::alignment)
      .def("read", &AioHandle::read_whole, py::arg("buffer"), py::arg("filename"), py::arg("validate"),
           py::arg("file_offset") = 0)
      .def("write", &AioHandle::write_whole, py::arg("buffer"), py::arg("filename"), py::arg("validate"),
           py::arg("file_offset") = 0)
      .def("pread", &AioHandle::pread, py::arg("buffer"), py::arg("filename"), py::arg("validate"), py::arg("async"),
           py::arg("file_offset") = 0)
      .def("pwrite", &AioHandle::pwrite, py::arg("buffer"), py::arg("filename"), py::arg("validate"), py::arg("async"),
           py::arg("file_offset") = 0)
      .def("wait", &AioHandle::wait, release)
      .def("new_cpu_locked_tensor", &AioHandle::new_cpu_locked_tensor, py::arg("num_elem"), py::arg("example_tensor"),
           release)
      .def("free_cpu_locked_tensor", &AioHandle::free_cpu_locked_tensor, py::arg("tensor"), release)
      .def("is_pinned", &AioHandle::holds_pinned, py::arg("buffer"), release);
  return handle;
}

/// sync_pread and its three relatives; the asynchronous ones also under the name that their file argument has for
/// descriptors.
void register_short_forms(py::class_<AioHandle>& handle) {
  const auto define = [&handle](const char* name, auto member, bool later, const char* file_argument) {
    handle.def(
        name,
        [member, later](AioHandle& self, const at::Tensor& buffer, const py::object& file, int64_t file_offset) {
          return (self.*member)(buffer, file, /*validate=*/false, later, file_offset);
        },
        py::arg("buffer"), py::arg(file_argument), py::arg("file_offset") = 0);
  };
  define("sync_pread", &AioHandle::pread, /*later=*/false, "filename");
  define("sync_pwrite", &AioHandle::pwrite, /*later=*/false, "filename");
  for (const char* const argument : {"filename", "fd"}) {
    define("async_pread", &AioHandle::pread, /*later=*/true, argument);
    define("async_pwrite", &AioHandle::pwrite, /*later=*/true, argument);
  }
}

}  // namespace

void register_aio(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> release;
  const auto shared = std::make_shared<Shared>();  // as long as the module
  py::class_<AioHandle> handle = register_handle(m, shared);
  register_short_forms(handle);
  py::class_<PinHandle>(m, "pin_handle")
      .def(py::init([shared] { return std::make_unique<PinHandle>(shared->buffers); }))
      .def("new_cpu_locked_tensor", &PinHandle::allocate, py::arg("num_elem"), py::arg("example_tensor"), release)
      .def("free_cpu_locked_tensor", &PinHandle::free, py::arg("locked_tensor"), release)
      .def("free_cpu_locked_tensor_by_ptr", &PinHandle::free_address, py::arg("address"), release)
      .def("is_pinned", &PinHandle::holds, py::arg("buffer"), release);
  m.def(
      "aio_read",
      [shared](const at::Tensor& buffer, const py::object& file, int64_t block_size, int64_t queue_depth, bool, bool,
               bool validate) { return aio_read(*shared, buffer, file, block_size, queue_depth, validate); },
      py::arg("buffer"), py::arg("filename"), py::arg("block_size"), py::arg("queue_depth"), py::arg("single_submit"),
      py::arg("overlap_events"), py::arg("validate"));
  m.def(
      "aio_write",
      [shared](const at::Tensor& buffer, const py::object& file, int64_t block_size, int64_t queue_depth, bool, bool,
               bool validate) { return aio_write(*shared, buffer, file, block_size, queue_depth, validate); },
      py::arg("buffer"), py::arg("filename"), py::arg("block_size"), py::arg("queue_depth"), py::arg("single_submit"),
      py::arg("overlap_events"), py::arg("validate"));
  m.def("aio_tuned_settings", &tuned_settings, py::arg("folder"));
  m.def("aio_engine", &aio_engine);
  m.def("deepspeed_memcpy", &memory_copy, py::arg("dest"), py::arg("src"), release);
}

}  // namespace deepscale
