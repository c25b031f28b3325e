#include "comm/torch_communicator.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/environment.h"
#include "base/error.h"
#include "comm/communicator_impl.h"
#include "comm/host_communicator.h"
#include "comm/host_tensor_communicator.h"
#include "comm/torch_positions.h"

namespace deepscale {
namespace {

using Clock = std::chrono::steady_clock;

/// Waits for c10d's work, then finishes what the backend could not do (scale, narrow).
class TorchWork final : public Pending::Work {
 public:
  TorchWork(std::shared_ptr<ProcessGroup> group, TorchPosition position, ProcessGroup::WorkPtr work,
            std::function<void()> finish)
      : group_(std::move(group)),
        position_(std::move(position)),
        work_(std::move(work)),
        finish_(std::move(finish)),
        started_(Clock::now()) {}

  void wait() override {
    try {
      work_->wait();
    } catch (const std::exception& error) {
      const auto waited = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - started_);
      throw CommError(explain_failure(*group_, position_, waited, reason_of(error)));
    }
    if (finish_) finish_();
  }
  void wait_released() override {}  // c10d's work is done only when its inputs are free too

 private:
  std::shared_ptr<ProcessGroup> group_;
  TorchPosition position_;
  ProcessGroup::WorkPtr work_;
  std::function<void()> finish_;
  Clock::time_point started_;
};

/// A reduction as the backend can do it: `tensor` and `op` to run, `finish` to run on the output afterwards.
struct Reduction {
  at::ScalarType dtype;  // what the backend sees
  ReduceOp op;
  bool divide = false;  // the backend sums; the output is divided afterwards
};

Reduction plan_reduction(const std::string& backend, at::ScalarType dtype, ReduceOp op) {
  Reduction plan{dtype, op};
  if (dtype == at::kBool) {  // bytes 0 and 1: a sum is "any", a product is "all"
    plan.dtype = at::kByte;
    plan.op = op == ReduceOp::kProduct || op == ReduceOp::kMin ? ReduceOp::kMin : ReduceOp::kMax;
    return plan;
  }
  if (backend == "gloo" && dtype == at::kShort) plan.dtype = at::kInt;
  if (op == ReduceOp::kAvg && backend != "nccl") {
    plan.op = ReduceOp::kSum;
    plan.divide = true;
  }
  return plan;
}

void divide_in_place(const at::Tensor& tensor, int size) {
  if (at::isIntegralType(tensor.scalar_type(), /*includeBool=*/false)) {
    tensor.div_(size, "trunc");
  } else {
    tensor.mul_(1.0 / size);
  }
}

at::Tensor as_dtype(const at::Tensor& tensor, at::ScalarType dtype) {
  const at::Tensor flat = tensor.variable_data().view({-1});
  if (tensor.scalar_type() == dtype) return flat;
  return tensor.scalar_type() == at::kBool ? flat.view(dtype) : flat.to(dtype);
}

/// Moves do not look at values: dtypes that Gloo does not know travel as bytes.
at::Tensor movable(const std::string& backend, const at::Tensor& tensor) {
  const at::Tensor flat = tensor.variable_data().view({-1});
  const bool known = tensor.scalar_type() != at::kShort && tensor.scalar_type() != at::kBool;
  return backend != "gloo" || known ? flat : flat.view(at::kByte);
}

class TorchCommunicator final : public Communicator::Impl {
 public:
  /// `host` may be empty.
  TorchCommunicator(std::shared_ptr<ProcessGroup> group, std::shared_ptr<HostCommunicator> host)
      : group_(std::move(group)), host_ranks_(std::move(host)) {
    if (host_ranks_) host_ = make_host_tensor_communicator(host_ranks_);
  }

  [[nodiscard]] int rank() const override { return group_->rank(); }
  [[nodiscard]] int size() const override { return group_->size(); }
  [[nodiscard]] bool shares_memory() const override { return host_ != nullptr; }
  [[nodiscard]] std::chrono::milliseconds timeout() const override { return group_->timeout(); }
  [[nodiscard]] int64_t bytes_moved() const override {
    return bytes_moved_.load(std::memory_order_relaxed) + (host_ ? host_->bytes_moved() : 0);
  }
  [[nodiscard]] std::string description() const override {
    std::vector<std::string> parts;
    if (host_) parts.emplace_back("host");
    for (const at::DeviceType device : group_->devices()) {
      const std::string name = *group_->backend(device);
      if (std::find(parts.begin(), parts.end(), name) == parts.end()) parts.push_back(name);
    }
    return fmt::format("{}, {} ranks", fmt::join(parts, " + "), size());
  }

  Pending all_reduce(const at::Tensor& tensor, ReduceOp op, std::string_view tag) override {
    if (by_host(tensor)) return host_->all_reduce(tensor, op, tag);
    const Reduction plan = plan_reduction(backend_of("all_reduce", tensor), tensor.scalar_type(), op);
    const at::Tensor data = as_dtype(tensor, plan.dtype);
    count(2 * tensor.nbytes() * (size() - 1) / size());
    return start(
        "all_reduce", tag, tensor, [&] { return group_->all_reduce(data, plan.op); }, finisher(plan, data, tensor));
  }

  Pending reduce_scatter(const at::Tensor& input, const at::Tensor& output, ReduceOp op,
                         std::string_view tag) override {
    if (by_host(input)) return host_->reduce_scatter(input, output, op, tag);
    const Reduction plan = plan_reduction(backend_of("reduce_scatter", input), input.scalar_type(), op);
    const at::Tensor from = as_dtype(input, plan.dtype);
    const at::Tensor to = as_dtype(output, plan.dtype);
    count(input.nbytes() * (size() - 1) / size());
    return start(
        "reduce_scatter", tag, input, [&] { return group_->reduce_scatter(from, to, plan.op); },
        finisher(plan, to, output));
  }

  Pending all_gather(const at::Tensor& input, const at::Tensor& output, std::string_view tag) override {
    if (by_host(input)) return host_->all_gather(input, output, tag);
    const std::string backend = backend_of("all_gather", input);
    count(output.nbytes() * (size() - 1) / size());
    return start("all_gather", tag, input,
                 [&] { return group_->all_gather(movable(backend, input), movable(backend, output)); });
  }

  Pending broadcast(const at::Tensor& tensor, int root, std::string_view tag) override {
    if (by_host(tensor)) return host_->broadcast(tensor, root, tag);
    const std::string backend = backend_of("broadcast", tensor);
    count(rank() == root ? 0 : tensor.nbytes());
    return start("broadcast", tag, tensor, [&] { return group_->broadcast(movable(backend, tensor), root); });
  }

  Pending all_to_all(const at::Tensor& input, const at::Tensor& output, std::string_view tag) override {
    if (by_host(input)) return host_->all_to_all(input, output, tag);
    const std::string backend = backend_of("all_to_all", input);
    count(input.nbytes() * (size() - 1) / size());
    return start("all_to_all", tag, input,
                 [&] { return group_->all_to_all(movable(backend, input), movable(backend, output)); });
  }

  Pending send(const at::Tensor& tensor, int peer, std::string_view tag) override {
    if (by_host(tensor)) return host_->send(tensor, peer, tag);
    const std::string backend = backend_of("send", tensor);
    count(tensor.nbytes());
    return start("send", tag, tensor, [&] { return group_->send(movable(backend, tensor), peer); });
  }

  Pending recv(const at::Tensor& tensor, int peer, std::string_view tag) override {
    if (by_host(tensor)) return host_->recv(tensor, peer, tag);
    const std::string backend = backend_of("recv", tensor);
    return start("recv", tag, tensor, [&] { return group_->recv(movable(backend, tensor), peer); });
  }

  void barrier(std::string_view tag) override {
    if (host_) return host_->barrier(tag);
    start("barrier", tag, at::Tensor(), [&] { return group_->barrier(); }).wait();
  }

  at::Tensor allocate(int64_t numel, at::ScalarType dtype, at::Device device) override {
    if (host_ && device.is_cpu()) return host_->allocate(numel, dtype, device);
    return allocate_private(numel, dtype, device);
  }
  std::optional<at::Tensor> allocate_common(int64_t numel, at::ScalarType dtype, at::Device device) override {
    if (host_ && device.is_cpu()) return host_->allocate_common(numel, dtype, device);
    return std::nullopt;
  }

  Communicator subgroup(const std::vector<int>& ranks) override;

 private:
  [[nodiscard]] bool by_host(const at::Tensor& tensor) const { return host_ != nullptr && tensor.is_cpu(); }

  [[nodiscard]] std::string backend_of(const char* kind, const at::Tensor& tensor) const {
    const auto backend = group_->backend(tensor.device().type());
    DS_CHECK_AS(CommError, backend.has_value(),
                "{}: the process group has no backend for tensors on {}; make it with one (torch.distributed: "
                "backend='cpu:gloo,cuda:nccl')",
                kind, tensor.device().str());
    return *backend;
  }

  void count(size_t bytes) { bytes_moved_.fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed); }

  /// Undoes plan_reduction on the output, or nothing when the backend's result is final.
  std::function<void()> finisher(const Reduction& plan, const at::Tensor& computed, const at::Tensor& output) {
    const bool widened = plan.dtype != output.scalar_type() && output.scalar_type() != at::kBool;
    if (!plan.divide && !widened) return nullptr;
    return [plan, computed, output, widened, ranks = size()] {
      if (plan.divide) divide_in_place(computed, ranks);
      if (widened) output.variable_data().view({-1}).copy_(computed);
    };
  }

  template <typename Launch>
  Pending start(const char* kind, std::string_view tag, const at::Tensor& tensor, const Launch& launch,
                std::function<void()> finish = nullptr) {
    TorchPosition position{++sequence_, kind, std::string(tag)};
    if (tensor.defined()) {
      position.dtype = tensor.scalar_type();
      position.numel = tensor.numel();
      if (tensor.numel() == 0) return {};
    }
    ProcessGroup::WorkPtr work;
    try {
      work = launch();
    } catch (const std::exception& error) {
      throw CommError(explain_failure(*group_, position, std::chrono::milliseconds(0), reason_of(error)));
    }
    return Pending(std::make_unique<TorchWork>(group_, std::move(position), std::move(work), std::move(finish)));
  }

  std::shared_ptr<ProcessGroup> group_;
  std::shared_ptr<HostCommunicator> host_ranks_;  // empty: no shared memory
  std::shared_ptr<Communicator::Impl> host_;      // tensors on top of it
  uint64_t sequence_ = 0;
  std::atomic<int64_t> bytes_moved_ = 0;
};

Communicator TorchCommunicator::subgroup(const std::vector<int>& ranks) {
  const std::vector<at::DeviceType> devices = group_->devices();
  // Gloo calls itself able to serve CUDA tensors; nobody makes a subgroup for that.
  const bool cpu_suffices =
      std::all_of(devices.begin(), devices.end(), [&](auto device) { return group_->backend(device) == "gloo"; });
  if (host_ && cpu_suffices) return host_->subgroup(ranks);
  std::shared_ptr<ProcessGroup> part;
  try {
    part = group_->split(ranks);
  } catch (const std::exception& error) {
    if (host_) return host_->subgroup(ranks);  // serves CPU tensors, refuses others by name
    ds_throw<UnsupportedError>(
        "subgroup of ranks [{}]: this process group ({}) cannot be split ({}); make the group with "
        "torch.distributed.new_group and wrap it",
        fmt::join(ranks, ", "), description(), reason_of(error));
  }
  std::shared_ptr<HostCommunicator> host_part;
  if (host_ranks_) host_part = host_ranks_->subgroup(ranks);
  if (ranks.size() == 1) return Communicator::self();
  return Communicator(std::make_shared<TorchCommunicator>(std::move(part), std::move(host_part)));
}

// ---- finding out whether all ranks share a machine

/// All-gather of byte strings through the process group itself, on the first device that it serves.
HostRendezvous rendezvous_over(const std::shared_ptr<ProcessGroup>& group) {
  return [group](const std::string& mine) {
    const int ranks = group->size();
    const at::TensorOptions cpu = at::TensorOptions().device(at::kCPU);
    const at::Device device(group->devices().front());
    const auto gather = [&](const at::Tensor& input) {
      const at::Tensor from = input.to(device);
      const at::Tensor to = at::empty({ranks * input.numel()}, from.options());
      group->all_gather(from, to)->wait();
      return to.to(at::kCPU);
    };
    const at::Tensor length = at::empty({1}, cpu.dtype(at::kLong));
    *length.mutable_data_ptr<int64_t>() = static_cast<int64_t>(mine.size());
    const at::Tensor lengths = gather(length);
    const int64_t* sizes = lengths.const_data_ptr<int64_t>();
    const int64_t longest = std::max<int64_t>(1, *std::max_element(sizes, sizes + ranks));
    const at::Tensor padded = at::zeros({longest}, cpu.dtype(at::kByte));
    std::memcpy(padded.mutable_data_ptr(), mine.data(), mine.size());
    const at::Tensor all = gather(padded);
    std::vector<std::string> result;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto* begin = reinterpret_cast<const char*>(all.const_data_ptr<uint8_t>()) + rank * longest;
      result.emplace_back(begin, static_cast<size_t>(sizes[rank]));
    }
    return result;
  };
}

/// Collective. Empty when ranks are on several machines or DEEPSCALE_HOST_COMM=0 on any of them.
std::shared_ptr<HostCommunicator> connect_host(const std::shared_ptr<ProcessGroup>& group) {
  const HostRendezvous exchange = rendezvous_over(group);
  const std::string wanted = environment_int("DEEPSCALE_HOST_COMM").value_or(1) != 0 ? "yes" : "no";
  const std::vector<std::string> answers = exchange(wanted);
  if (std::find(answers.begin(), answers.end(), "no") != answers.end()) return nullptr;
  HostOptions options;
  options.timeout = group->timeout();
  return HostCommunicator::connect(group->rank(), group->size(), exchange, options).communicator;
}

}  // namespace

Communicator make_torch_communicator(const ProcessGroup::Handle& group,
                                     std::optional<std::chrono::milliseconds> timeout, HostUse host_use) {
  DS_CHECK_AS(CommError, group, "the process group is empty: this rank is not a member of it");
  return make_torch_communicator(ProcessGroup::wrap(group, timeout), host_use);
}

Communicator make_torch_communicator(std::shared_ptr<ProcessGroup> wrapped, HostUse host_use) {
  if (wrapped->size() == 1) return Communicator::self();
  DS_CHECK_AS(CommError, !wrapped->devices().empty(), "the process group has no backend on any device");
  std::shared_ptr<HostCommunicator> host;
  if (host_use == HostUse::kAuto) {
    try {
      host = connect_host(wrapped);
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      TorchPosition position{0, "the first exchange of the group", ""};
      throw CommError(explain_failure(*wrapped, position, std::chrono::milliseconds(0), reason_of(error)));
    }
  }
  return Communicator(std::make_shared<TorchCommunicator>(std::move(wrapped), std::move(host)));
}

}  // namespace deepscale
