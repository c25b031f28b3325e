#include "comm/communicator.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "comm/communicator_impl.h"
#include "comm/self_communicator.h"
#include "platform/private_memory.h"

namespace deepscale {
namespace {

// Smaller buffers leave no holes in the heap that would be worth a system call.
constexpr int64_t kOutsideHeap = 1 << 20;

}  // namespace

DType to_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kHalf:
      return DType::kFloat16;
    case at::kDouble:
      return DType::kFloat64;
    case at::kChar:
      return DType::kInt8;
    case at::kByte:
      return DType::kUInt8;
    case at::kShort:
      return DType::kInt16;
    case at::kInt:
      return DType::kInt32;
    case at::kLong:
      return DType::kInt64;
    case at::kBool:
      return DType::kBool;
    default:
      ds_throw<UnsupportedError>(
          "tensors of dtype {} cannot be communicated here; float32, bfloat16, float16, float64, int8, uint8, int16, "
          "int32, int64 and bool can",
          at::toString(type));
  }
}

at::ScalarType to_scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return at::kFloat;
    case DType::kBFloat16:
      return at::kBFloat16;
    case DType::kFloat16:
      return at::kHalf;
    case DType::kFloat64:
      return at::kDouble;
    case DType::kInt8:
      return at::kChar;
    case DType::kUInt8:
      return at::kByte;
    case DType::kInt16:
      return at::kShort;
    case DType::kInt32:
      return at::kInt;
    case DType::kInt64:
      return at::kLong;
    case DType::kBool:
      return at::kBool;
  }
  ds_throw<UnsupportedError>("unknown DType {}", static_cast<int>(dtype));
}

at::Tensor allocate_private(int64_t numel, at::ScalarType dtype, at::Device device) {
  const auto options = at::TensorOptions().dtype(dtype).device(device);
  const int64_t bytes = numel * static_cast<int64_t>(c10::elementSize(dtype));
  if (!device.is_cpu() || bytes < kOutsideHeap) return at::zeros({numel}, options);
  auto memory = std::make_shared<PrivateMemory>(bytes);
  char* const data = memory->data();
  return at::from_blob(
      data, {numel}, [memory = std::move(memory)](void*) {}, options);
}

void copy_bytes(const at::Tensor& from, const at::Tensor& to) {
  if (from.data_ptr() == to.data_ptr() || from.numel() == 0) return;
  if (from.is_cpu() && to.is_cpu()) {
    std::memmove(to.data_ptr(), from.data_ptr(), static_cast<size_t>(from.nbytes()));
    return;
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  to.view({-1}).copy_(from.view({-1}), /*non_blocking=*/true);
}

// ---- Pending

Pending& Pending::operator=(Pending&& other) noexcept {
  if (this != &other) {
    Pending finished(std::move(*this));  // its destructor waits
    work_ = std::move(other.work_);
    waited_ = std::exchange(other.waited_, false);
  }
  return *this;
}

Pending::~Pending() {
  if (work_ == nullptr) return;
  try {
    wait_released();
  } catch (...) {  // whoever cares about the error calls wait()
  }
}

void Pending::wait() {
  if (work_ == nullptr || waited_) return;
  waited_ = true;
  try {
    work_->wait();
  } catch (...) {
    work_.reset();  // a failed operation is not waited for again
    throw;
  }
}

void Pending::wait_released() {
  wait();
  if (work_ == nullptr) return;
  const std::unique_ptr<Work> work = std::move(work_);
  work->wait_released();
}

// ---- argument checks, shared by all implementations

namespace {

std::string place(const char* operation, std::string_view tag) {
  return tag.empty() ? std::string(operation) : fmt::format("{} of '{}'", operation, tag);
}

void check_tensor(const char* operation, std::string_view tag, const char* name, const at::Tensor& tensor) {
  DS_CHECK_AS(CommError, tensor.defined(), "{}: {} is an undefined tensor", place(operation, tag), name);
  DS_CHECK_AS(CommError, tensor.layout() == at::kStrided && tensor.is_contiguous(),
              "{}: {} with shape {} and strides {} is not contiguous; pass {}.contiguous() or a flat buffer",
              place(operation, tag), name, c10::str(tensor.sizes()),
              tensor.layout() == at::kStrided ? c10::str(tensor.strides()) : std::string("(sparse)"), name);
}

void check_reduction(const char* operation, std::string_view tag, const at::Tensor& tensor, ReduceOp op) {
  DS_CHECK_AS(CommError, tensor.scalar_type() != at::kBool || op != ReduceOp::kAvg,
              "{}: bool has no average; use sum (any), product (all), max or min", place(operation, tag));
}

void check_pair(const char* operation, std::string_view tag, const at::Tensor& input, const at::Tensor& output) {
  check_tensor(operation, tag, "input", input);
  check_tensor(operation, tag, "output", output);
  DS_CHECK_AS(CommError, input.scalar_type() == output.scalar_type() && input.device() == output.device(),
              "{}: input is {} on {}, output is {} on {}; both must agree", place(operation, tag),
              at::toString(input.scalar_type()), input.device().str(), at::toString(output.scalar_type()),
              output.device().str());
}

void check_peer(const char* operation, std::string_view tag, int peer, int size) {
  DS_CHECK_AS(CommError, peer >= 0 && peer < size, "{}: rank {} is outside the group's ranks 0..{}",
              place(operation, tag), peer, size - 1);
}

void check_numel(const char* operation, std::string_view tag, bool fits, const at::Tensor& input,
                 const at::Tensor& output, int size) {
  DS_CHECK_AS(CommError, fits, "{}: input has {} elements, output {}; the group has {} ranks", place(operation, tag),
              input.numel(), output.numel(), size);
}

}  // namespace

// ---- Communicator

Communicator::Communicator() : impl_(make_self_communicator()) {}
Communicator Communicator::self() {
  return Communicator();
}

int Communicator::rank() const {
  return impl_->rank();
}
int Communicator::size() const {
  return impl_->size();
}
bool Communicator::shares_memory() const {
  return impl_->shares_memory();
}
std::string Communicator::description() const {
  return impl_->description();
}
std::chrono::milliseconds Communicator::timeout() const {
  return impl_->timeout();
}
int64_t Communicator::bytes_moved() const {
  return impl_->bytes_moved();
}

Pending Communicator::all_reduce(const at::Tensor& tensor, ReduceOp op, std::string_view tag) const {
  check_tensor("all_reduce", tag, "tensor", tensor);
  check_reduction("all_reduce", tag, tensor, op);
  return impl_->all_reduce(tensor, op, tag);
}

Pending Communicator::reduce_scatter(const at::Tensor& input, const at::Tensor& output, ReduceOp op,
                                     std::string_view tag) const {
  check_pair("reduce_scatter", tag, input, output);
  check_reduction("reduce_scatter", tag, input, op);
  check_numel("reduce_scatter", tag, input.numel() == output.numel() * size(), input, output, size());
  return impl_->reduce_scatter(input, output, op, tag);
}

Pending Communicator::all_gather(const at::Tensor& input, const at::Tensor& output, std::string_view tag) const {
  check_pair("all_gather", tag, input, output);
  check_numel("all_gather", tag, output.numel() == input.numel() * size(), input, output, size());
  return impl_->all_gather(input, output, tag);
}

Pending Communicator::broadcast(const at::Tensor& tensor, int root, std::string_view tag) const {
  check_tensor("broadcast", tag, "tensor", tensor);
  check_peer("broadcast", tag, root, size());
  return impl_->broadcast(tensor, root, tag);
}

Pending Communicator::all_to_all(const at::Tensor& input, const at::Tensor& output, std::string_view tag) const {
  check_pair("all_to_all", tag, input, output);
  check_numel("all_to_all", tag, input.numel() == output.numel() && input.numel() % size() == 0, input, output, size());
  return impl_->all_to_all(input, output, tag);
}

Pending Communicator::send(const at::Tensor& tensor, int peer, std::string_view tag) const {
  check_tensor("send", tag, "tensor", tensor);
  check_peer("send", tag, peer, size());
  return impl_->send(tensor, peer, tag);
}

Pending Communicator::recv(const at::Tensor& tensor, int peer, std::string_view tag) const {
  check_tensor("recv", tag, "tensor", tensor);
  check_peer("recv", tag, peer, size());
  return impl_->recv(tensor, peer, tag);
}

void Communicator::barrier(std::string_view tag) const {
  impl_->barrier(tag);
}

at::Tensor Communicator::allocate(int64_t numel, at::ScalarType dtype, at::Device device) const {
  DS_CHECK_AS(CommError, numel >= 0, "allocate: numel must not be negative, got {}", numel);
  return impl_->allocate(numel, dtype, device);
}

std::optional<at::Tensor> Communicator::allocate_common(int64_t numel, at::ScalarType dtype, at::Device device) const {
  DS_CHECK_AS(CommError, numel >= 0, "allocate_common: numel must not be negative, got {}", numel);
  return impl_->allocate_common(numel, dtype, device);
}

Communicator Communicator::subgroup(const std::vector<int>& ranks) const {
  const bool ascending =
      std::is_sorted(ranks.begin(), ranks.end()) && std::adjacent_find(ranks.begin(), ranks.end()) == ranks.end();
  const bool inside = !ranks.empty() && ranks.front() >= 0 && ranks.back() < size();
  DS_CHECK_AS(CommError, ascending && inside && std::find(ranks.begin(), ranks.end(), rank()) != ranks.end(),
              "subgroup: ranks [{}] must be ascending, different, within 0..{}, and contain this rank {}",
              fmt::join(ranks, ", "), size() - 1, rank());
  return impl_->subgroup(ranks);
}

}  // namespace deepscale
