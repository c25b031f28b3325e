#include "comm/host_tensor_communicator.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "base/error.h"

namespace deepscale {
namespace {

/// Keeps the tensors alive for as long as peers may touch their bytes.
class HostWork final : public Pending::Work {
 public:
  HostWork(HostPending pending, std::initializer_list<at::Tensor> tensors)
      : tensors_(tensors), pending_(std::move(pending)) {}
  void wait() override { pending_.wait(); }
  void wait_released() override { pending_.wait_released(); }

 private:
  std::vector<at::Tensor> tensors_;  // declared first: dies after pending_, whose destructor waits
  HostPending pending_;
};

Pending make_pending(HostPending pending, std::initializer_list<at::Tensor> tensors) {
  return Pending(std::make_unique<HostWork>(std::move(pending), tensors));
}

void check_cpu(const char* operation, const at::Tensor& tensor) {
  DS_CHECK_AS(
      CommError, tensor.is_cpu(),
      "{}: this group has shared memory only and cannot move a tensor on {}: keep the model on the CPU, or start the "
      "program from Python with a process group that serves that device (for CUDA: nccl)",
      operation, tensor.device().str());
}

/// A zero-filled block as a flat tensor; the block lives until the last tensor on its storage dies.
at::Tensor tensor_over(std::shared_ptr<void> block, int64_t numel, at::ScalarType dtype) {
  void* address = block.get();
  return at::from_blob(
      address, {numel}, [block = std::move(block)](void*) mutable { block.reset(); }, at::TensorOptions().dtype(dtype));
}

class HostTensorCommunicator final : public Communicator::Impl {
 public:
  explicit HostTensorCommunicator(std::shared_ptr<HostCommunicator> host) : host_(std::move(host)) {}

  [[nodiscard]] int rank() const override { return host_->rank(); }
  [[nodiscard]] int size() const override { return host_->size(); }
  [[nodiscard]] bool shares_memory() const override { return true; }
  [[nodiscard]] std::string description() const override {
    return fmt::format("host, {} rank{}", size(), size() == 1 ? "" : "s");
  }
  [[nodiscard]] std::chrono::milliseconds timeout() const override { return host_->timeout(); }
  [[nodiscard]] int64_t bytes_moved() const override { return host_->bytes_moved(); }

  Pending all_reduce(const at::Tensor& tensor, ReduceOp op, std::string_view tag) override {
    check_cpu("all_reduce", tensor);
    const DType dtype = to_dtype(tensor.scalar_type());
    return make_pending(host_->all_reduce(tensor.data_ptr(), tensor.numel(), dtype, op, tag), {tensor});
  }

  Pending reduce_scatter(const at::Tensor& input, const at::Tensor& output, ReduceOp op,
                         std::string_view tag) override {
    check_cpu("reduce_scatter", input);
    const DType dtype = to_dtype(input.scalar_type());
    return make_pending(
        host_->reduce_scatter(input.const_data_ptr(), output.data_ptr(), output.numel(), dtype, op, tag),
        {input, output});
  }

  Pending all_gather(const at::Tensor& input, const at::Tensor& output, std::string_view tag) override {
    check_cpu("all_gather", input);
    const DType dtype = to_dtype(input.scalar_type());
    return make_pending(host_->all_gather(input.const_data_ptr(), output.data_ptr(), input.numel(), dtype, tag),
                        {input, output});
  }

  Pending broadcast(const at::Tensor& tensor, int root, std::string_view tag) override {
    check_cpu("broadcast", tensor);
    const DType dtype = to_dtype(tensor.scalar_type());
    return make_pending(host_->broadcast(tensor.data_ptr(), tensor.numel(), dtype, root, tag), {tensor});
  }

  Pending all_to_all(const at::Tensor& input, const at::Tensor& output, std::string_view tag) override {
    check_cpu("all_to_all", input);
    const DType dtype = to_dtype(input.scalar_type());
    const int64_t count = input.numel() / size();
    return make_pending(host_->all_to_all(input.const_data_ptr(), output.data_ptr(), count, dtype, tag),
                        {input, output});
  }

  Pending send(const at::Tensor& tensor, int peer, std::string_view tag) override {
    check_cpu("send", tensor);
    const DType dtype = to_dtype(tensor.scalar_type());
    return make_pending(host_->send(tensor.const_data_ptr(), tensor.numel(), dtype, peer, tag), {tensor});
  }

  Pending recv(const at::Tensor& tensor, int peer, std::string_view tag) override {
    check_cpu("recv", tensor);
    const DType dtype = to_dtype(tensor.scalar_type());
    return make_pending(host_->recv(tensor.data_ptr(), tensor.numel(), dtype, peer, tag), {tensor});
  }

  void barrier(std::string_view tag) override { host_->barrier(tag).wait(); }

  at::Tensor allocate(int64_t numel, at::ScalarType dtype, at::Device device) override {
    if (!device.is_cpu() || numel == 0) return allocate_private(numel, dtype, device);
    return tensor_over(host_->memory()->allocate(numel * size_of(to_dtype(dtype))), numel, dtype);
  }

  std::optional<at::Tensor> allocate_common(int64_t numel, at::ScalarType dtype, at::Device device) override {
    if (!device.is_cpu()) return std::nullopt;
    if (numel == 0) return allocate_private(numel, dtype, device);
    return tensor_over(host_->allocate_common(numel * size_of(to_dtype(dtype))), numel, dtype);
  }

  Communicator subgroup(const std::vector<int>& ranks) override {
    auto sub = host_->subgroup(ranks);
    if (ranks.size() == 1) return Communicator::self();
    return Communicator(make_host_tensor_communicator(std::move(sub)));
  }

 private:
  std::shared_ptr<HostCommunicator> host_;
};

}  // namespace

std::shared_ptr<Communicator::Impl> make_host_tensor_communicator(std::shared_ptr<HostCommunicator> host) {
  return std::make_shared<HostTensorCommunicator>(std::move(host));
}

Communicator Communicator::host(std::shared_ptr<HostCommunicator> host) {
  DS_CHECK_AS(CommError, host != nullptr, "Communicator::host: there is no host communicator (its connection failed)");
  if (host->size() == 1) return self();
  return Communicator(make_host_tensor_communicator(std::move(host)));
}

}  // namespace deepscale
