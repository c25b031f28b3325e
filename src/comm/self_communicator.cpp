#include "comm/self_communicator.h"

#include "base/error.h"

namespace deepscale {
namespace {

class SelfCommunicator final : public Communicator::Impl {
 public:
  [[nodiscard]] int rank() const override { return 0; }
  [[nodiscard]] int size() const override { return 1; }
  [[nodiscard]] bool shares_memory() const override { return true; }
  [[nodiscard]] std::string description() const override { return "self, 1 rank"; }
  [[nodiscard]] std::chrono::milliseconds timeout() const override { return std::chrono::minutes(30); }
  [[nodiscard]] int64_t bytes_moved() const override { return 0; }

  Pending all_reduce(const at::Tensor&, ReduceOp, std::string_view) override { return {}; }
  Pending reduce_scatter(const at::Tensor& input, const at::Tensor& output, ReduceOp, std::string_view) override {
    copy_bytes(input, output);
    return {};
  }
  Pending all_gather(const at::Tensor& input, const at::Tensor& output, std::string_view) override {
    copy_bytes(input, output);
    return {};
  }
  Pending broadcast(const at::Tensor&, int, std::string_view) override { return {}; }
  Pending all_to_all(const at::Tensor& input, const at::Tensor& output, std::string_view) override {
    copy_bytes(input, output);
    return {};
  }
  Pending send(const at::Tensor&, int, std::string_view tag) override {
    ds_throw<CommError>("send '{}': this group has one rank; there is no peer to send to", tag);
  }
  Pending recv(const at::Tensor&, int, std::string_view tag) override {
    ds_throw<CommError>("recv '{}': this group has one rank; there is no peer to receive from", tag);
  }
  void barrier(std::string_view) override {}

  at::Tensor allocate(int64_t numel, at::ScalarType dtype, at::Device device) override {
    return allocate_private(numel, dtype, device);
  }
  std::optional<at::Tensor> allocate_common(int64_t numel, at::ScalarType dtype, at::Device device) override {
    return allocate_private(numel, dtype, device);
  }
  Communicator subgroup(const std::vector<int>&) override { return Communicator::self(); }
};

}  // namespace

std::shared_ptr<Communicator::Impl> make_self_communicator() {
  return std::make_shared<SelfCommunicator>();
}

}  // namespace deepscale
