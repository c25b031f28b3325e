#include "comm/process_group.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <torch/csrc/distributed/c10d/Store.hpp>
#include <utility>

#include "base/error.h"
#include "comm/c10d_process_group.h"
#include "comm/torch_versions.h"

namespace deepscale {
namespace {

using WorkHandle = c10::intrusive_ptr<c10d::Work>;

// ---- small conversions

c10d::ReduceOp to_c10d(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return c10d::ReduceOp::SUM;
    case ReduceOp::kAvg:
      return c10d::ReduceOp::AVG;
    case ReduceOp::kMax:
      return c10d::ReduceOp::MAX;
    case ReduceOp::kMin:
      return c10d::ReduceOp::MIN;
    case ReduceOp::kProduct:
      return c10d::ReduceOp::PRODUCT;
  }
  return c10d::ReduceOp::SUM;
}

/// The same bytes without autograd history and with a version counter of their own: writing them is no in-place change.
at::Tensor raw(const at::Tensor& tensor) {
  return tensor.variable_data();
}

class C10dWork final : public ProcessGroup::Work {
 public:
  C10dWork(WorkHandle work, std::vector<at::Tensor> tensors, std::chrono::milliseconds timeout)
      : work_(std::move(work)), tensors_(std::move(tensors)), timeout_(timeout) {}
  void wait() override {
    if (work_) work_->wait(timeout_);
  }

 private:
  WorkHandle work_;
  std::vector<at::Tensor> tensors_;  // alive until the backend is done with them
  std::chrono::milliseconds timeout_;
};

class C10dProcessGroup final : public ProcessGroup {
 public:
  C10dProcessGroup(Handle group, std::optional<std::chrono::milliseconds> timeout) : group_(std::move(group)) {
    options_timeout_ = timeout.value_or(c10d::kUnsetTimeout);
    timeout_ = timeout ? *timeout : group_timeout();
  }

  [[nodiscard]] int rank() const override { return group_->getRank(); }
  [[nodiscard]] int size() const override { return group_->getSize(); }
  [[nodiscard]] std::chrono::milliseconds timeout() const override { return timeout_; }

  [[nodiscard]] std::optional<std::string> backend(at::DeviceType device) const override {
    const std::vector<at::DeviceType> known = devices();
    if (std::find(known.begin(), known.end(), device) == known.end()) return std::nullopt;
    return group_->getBackend(device)->getBackendName();
  }

  [[nodiscard]] std::vector<at::DeviceType> devices() const override {
    std::vector<at::DeviceType> types;
    for (const c10::Device& device : group_->getDeviceTypes()) types.push_back(device.type());
    std::sort(types.begin(), types.end());
    return types;
  }

  WorkPtr all_reduce(const at::Tensor& tensor, ReduceOp op) override {
    std::vector<at::Tensor> tensors{raw(tensor)};
    c10d::AllreduceOptions options;
    options.reduceOp = to_c10d(op);
    options.timeout = options_timeout_;
    return collective(group_->allreduce(tensors, options), tensors);
  }

  WorkPtr reduce_scatter(const at::Tensor& input, const at::Tensor& output, ReduceOp op) override {
    at::Tensor from = raw(input).view({-1});
    at::Tensor to = raw(output).view({-1});
    c10d::ReduceScatterOptions options;
    options.reduceOp = to_c10d(op);
    options.timeout = options_timeout_;
    return collective(call_reduce_scatter(*group_, to, from, options), {from, to});
  }

  WorkPtr all_gather(const at::Tensor& input, const at::Tensor& output) override {
    at::Tensor from = raw(input).view({-1});
    at::Tensor to = raw(output).view({-1});
    c10d::AllgatherOptions options;
    options.timeout = options_timeout_;
    return collective(call_all_gather(*group_, to, from, options), {from, to});
  }

  WorkPtr broadcast(const at::Tensor& tensor, int root) override {
    std::vector<at::Tensor> tensors{raw(tensor)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.timeout = options_timeout_;
    return collective(group_->broadcast(tensors, options), tensors);
  }

  WorkPtr all_to_all(const at::Tensor& input, const at::Tensor& output) override {
    at::Tensor from = raw(input).view({-1});
    at::Tensor to = raw(output).view({-1});
    std::vector<int64_t> equal_splits;
    c10d::AllToAllOptions options;
    options.timeout = options_timeout_;
    return collective(call_all_to_all(*group_, to, from, equal_splits, options), {from, to});
  }

  WorkPtr send(const at::Tensor& tensor, int peer) override {
    std::vector<at::Tensor> tensors{raw(tensor)};
    return point_to_point(group_->send(tensors, peer, /*tag=*/0), tensors);
  }

  WorkPtr recv(const at::Tensor& tensor, int peer) override {
    std::vector<at::Tensor> tensors{raw(tensor)};
    return point_to_point(group_->recv(tensors, peer, /*tag=*/0), tensors);
  }

  WorkPtr barrier() override {
    c10d::BarrierOptions options;
    options.timeout = options_timeout_;
    // Not ProcessGroup::barrier: it keeps a tensor in a variable that all threads of the process share without a lock,
    // and ranks may be threads. The backend of the accelerator if there is one, as torch chooses.
    return collective(group_->getBackend(devices().back())->barrier(options), {});
  }

  bool publish(const std::string& key, const std::string& value) override {
    try {
      if (!group_->getStore()) return false;
      group_->getStore()->set(key, value);
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }

  std::optional<std::string> look_up(const std::string& key) override {
    try {
      const auto store = group_->getStore();
      if (!store || !store->check({key})) return std::nullopt;
      return store->get_to_str(key);
    } catch (const std::exception&) {
      return std::nullopt;
    }
  }

  std::unique_ptr<ProcessGroup> split(const std::vector<int>& ranks) override {
    for (const at::DeviceType device : devices()) {
      const auto backend = group_->getBackend(device);
      DS_CHECK_AS(UnsupportedError, backend->supportsSplitting() && lists_ranks(*backend->getBackendOptions(), size()),
                  "backend {} of this group cannot split", backend->getBackendName());
    }
    // Every subset has a name of its own: subsets of one split share a store.
    const std::string name = fmt::format("deepscale_split_{}_{}", splits_++, fmt::join(ranks, "_"));
    return wrap(group_->splitGroup(ranks, timeout_, std::nullopt, name, std::nullopt), timeout_);
  }

 private:
  WorkPtr collective(WorkHandle work, std::vector<at::Tensor> tensors) {
    return std::make_unique<C10dWork>(std::move(work), std::move(tensors), kNoTimeout);
  }
  /// Sends and receives take no options, so the time limit belongs to their wait. Not on devices: a limit there would
  /// make the host wait for the stream.
  WorkPtr point_to_point(WorkHandle work, std::vector<at::Tensor> tensors) {
    const auto limit = tensors.front().is_cpu() ? timeout_ : kNoTimeout;
    return std::make_unique<C10dWork>(std::move(work), std::move(tensors), limit);
  }

  [[nodiscard]] std::chrono::milliseconds group_timeout() const {
    for (const at::DeviceType device : devices()) {
      try {
        return group_->getBackend(device)->getBackendOptions()->timeout;
      } catch (const std::exception&) {  // this backend does not tell
      }
    }
    return kProcessGroupDefaultTimeout;
  }

  Handle group_;
  std::chrono::milliseconds options_timeout_{};
  std::chrono::milliseconds timeout_{};
  int splits_ = 0;
};

}  // namespace

std::unique_ptr<ProcessGroup> ProcessGroup::wrap(const Handle& group,
                                                 std::optional<std::chrono::milliseconds> timeout) {
  return std::make_unique<C10dProcessGroup>(group, timeout);
}

}  // namespace deepscale
