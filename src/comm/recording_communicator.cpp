#include "comm/recording_communicator.h"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <utility>

#include "comm/communicator_impl.h"

namespace deepscale {

void OperationLog::add(const Entry& entry) {
  const std::lock_guard lock(mutex_);
  entries_.push_back(entry);
}

std::vector<OperationLog::Entry> OperationLog::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(entries_, {});
}

namespace {

/// A device's operation is ordered after wait(), and over when its stream is.
void finish(const at::Device& device) {
  if (device.is_cpu()) return;
  c10::impl::VirtualGuardImpl(device.type()).getStream(device).synchronize();
}

class RecordingCommunicator final : public Communicator::Impl {
 public:
  RecordingCommunicator(Communicator inner, std::shared_ptr<OperationLog> log)
      : inner_(std::move(inner)), log_(std::move(log)) {}

  [[nodiscard]] int rank() const override { return inner_.rank(); }
  [[nodiscard]] int size() const override { return inner_.size(); }
  [[nodiscard]] bool shares_memory() const override { return inner_.shares_memory(); }
  [[nodiscard]] std::string description() const override { return inner_.description(); }
  [[nodiscard]] std::chrono::milliseconds timeout() const override { return inner_.timeout(); }
  [[nodiscard]] int64_t bytes_moved() const override { return inner_.bytes_moved(); }

  Pending all_reduce(const at::Tensor& tensor, ReduceOp op, std::string_view tag) override {
    return timed("all_reduce", tensor, [&] { return inner_.all_reduce(tensor, op, tag); });
  }
  Pending reduce_scatter(const at::Tensor& input, const at::Tensor& output, ReduceOp op,
                         std::string_view tag) override {
    return timed("reduce_scatter_tensor", output, [&] { return inner_.reduce_scatter(input, output, op, tag); });
  }
  Pending all_gather(const at::Tensor& input, const at::Tensor& output, std::string_view tag) override {
    return timed("all_gather_into_tensor", input, [&] { return inner_.all_gather(input, output, tag); });
  }
  Pending broadcast(const at::Tensor& tensor, int root, std::string_view tag) override {
    return timed("broadcast", tensor, [&] { return inner_.broadcast(tensor, root, tag); });
  }
  Pending all_to_all(const at::Tensor& input, const at::Tensor& output, std::string_view tag) override {
    return timed("all_to_all_single", input, [&] { return inner_.all_to_all(input, output, tag); });
  }
  Pending send(const at::Tensor& tensor, int peer, std::string_view tag) override {
    return inner_.send(tensor, peer, tag);
  }
  Pending recv(const at::Tensor& tensor, int peer, std::string_view tag) override {
    return inner_.recv(tensor, peer, tag);
  }
  void barrier(std::string_view tag) override {
    const auto begin = std::chrono::steady_clock::now();
    inner_.barrier(tag);
    if (log_->enabled()) add("barrier", 0, begin);
  }

  at::Tensor allocate(int64_t numel, at::ScalarType dtype, at::Device device) override {
    return inner_.allocate(numel, dtype, device);
  }
  std::optional<at::Tensor> allocate_common(int64_t numel, at::ScalarType dtype, at::Device device) override {
    return inner_.allocate_common(numel, dtype, device);
  }
  Communicator subgroup(const std::vector<int>& ranks) override { return recorded(inner_.subgroup(ranks), log_); }

 private:
  using Time = std::chrono::steady_clock::time_point;

  template <typename Begin>
  Pending timed(const char* operation, const at::Tensor& message, const Begin& begin_operation) {
    if (!log_->enabled()) return begin_operation();
    finish(message.device());
    const Time begin = std::chrono::steady_clock::now();
    Pending pending = begin_operation();
    pending.wait();
    finish(message.device());
    add(operation, static_cast<int64_t>(message.nbytes()), begin);
    return pending;
  }

  void add(const char* operation, int64_t bytes, Time begin) {
    const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - begin;
    log_->add({operation, bytes, inner_.size(), time.count()});
  }

  Communicator inner_;
  std::shared_ptr<OperationLog> log_;
};

}  // namespace

Communicator recorded(Communicator inner, std::shared_ptr<OperationLog> log) {
  return Communicator(std::make_shared<RecordingCommunicator>(std::move(inner), std::move(log)));
}

}  // namespace deepscale
