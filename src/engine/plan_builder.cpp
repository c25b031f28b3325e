#include "engine/plan_builder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <deque>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "config/json_text.h"
#include "engine/plan_sizes.h"
#include "engine/plan_units.h"
#include "kernels/cpu/spans.h"
#include "memory/file_shares.h"

namespace deepscale {
namespace {

constexpr int64_t kPage = 4096;
// Of GradReducer: buckets that wait for readers, reductions under way, smallest shard that goes to a file.
constexpr size_t kSpareBuckets = 3, kBucketsInFlight = 1;
constexpr int64_t kSmallestInFile = 1 << 16;

constexpr int64_t round_up(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

/// What a tensor takes of a tier's pool.
int64_t buffer_bytes(int64_t bytes) {
  constexpr int64_t kMib = 1 << 20;
  return round_up(std::max<int64_t>(bytes, 1), bytes < kMib ? kPage : kMib);
}

/// What the optimizer keeps of each trained element.
struct StateSizes {
  int states = 2;
  bool external = false;
  DType master = DType::kFloat32, state = DType::kFloat32;
  int64_t scratch_per_element = 0;  ///< of the largest unit, while it is stepped

  [[nodiscard]] int64_t bytes_per_element() const { return size_of(master) + states * size_of(state); }
};

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

StateSizes state_sizes(const Options& o, const World& world, std::vector<std::string>& notes) {
  StateSizes sizes;
  const config::Json params = config::parse_json_text(o.optimizer.params.text);
  const std::string type = lower(o.optimizer.type.value_or(""));
  if (world.optimizer) {
    sizes.states = world.optimizer->states;
    sizes.external = world.optimizer->external;
  } else if (type.empty()) {
    notes.push_back("the configuration names no optimizer: two states per parameter are planned, as Adam has");
  } else if (type == "lion" || type == "adagrad") {
    sizes.states = 1;
  } else if (type == "sgd") {
    const bool momentum = params.is_object() && params.contains("momentum") && params["momentum"] != 0;
    sizes.states = momentum ? 1 : 0;
  }
  if (type == "lamb") sizes.scratch_per_element = 4;
  if (type == "muon") sizes.scratch_per_element = 16;
  if (o.fp16.enabled && o.fp16.fp16_master_weights_and_grads) sizes.master = DType::kFloat16;
  if (o.bf16.enabled && o.bf16.bf16_master_weights_and_grads) sizes.master = DType::kBFloat16;
  if (o.bf16.enabled && o.bf16.bf16_optimizer_states) sizes.state = DType::kBFloat16;
  const bool as_master = params.is_object() && params.value("fp32_optimizer_states", true) == false;
  if (as_master && (type == "adam" || type == "adamw")) sizes.state = sizes.master;
  return sizes;
}

std::optional<DType> dtype_of(const std::optional<FloatType>& type) {
  if (!type) return std::nullopt;
  return *type == FloatType::kFp32 ? DType::kFloat32 : *type == FloatType::kFp16 ? DType::kFloat16 : DType::kBFloat16;
}

class PlanBuilder {
 public:
  PlanBuilder(const Config& config, const ModelShapes& shapes, const World& world)
      : o_(config.options()), shapes_(shapes), world_(world) {
    plan_.ranks = world.ranks;
    plan_.ranks_per_host = world.ranks_per_host > 0 ? std::min(world.ranks_per_host, world.ranks) : world.ranks;
    shares_ = world.shares_memory && !world.accelerator && plan_.ranks_per_host == world.ranks && world.ranks > 1;
    for (const ParamShape& param : shapes.params) {
      plan_.params_numel += param.numel();
      if (param.trainable && world.trains) plan_.trainable_numel += param.numel();
    }
  }

  MemoryPlan run() {
    units_ = plan_units(o_, shapes_, world_.ranks, world_.trains);
    states_ = state_sizes(o_, world_, plan_.notes);
    choose_files();
    for (size_t u = 0; u < units_.units.size(); ++u) add_parameters(u);
    for (const int p : units_.loose) {
      const ParamShape& param = shapes_.params[p];
      plan_.add(PlannedState::kParameters, private_place(world_.accelerator),
                param.numel() * size_of(training_dtype(param, o_)), "");
    }
    add_gather_buffers();
    if (world_.trains) add_training();
    add_others();
    add_residents();
    return std::move(plan_);
  }

 private:
  // ---- places

  [[nodiscard]] static MemoryPlace private_place(bool on_device) {
    return on_device ? MemoryPlace::kDevice : MemoryPlace::kHostPageable;
  }
  /// Parameters (and with them gradients) of the unit are in host memory.
  [[nodiscard]] bool on_host(const PlannedUnit& unit) const {
    return !world_.accelerator || (unit.sizes.shards_params && o_.zero.param_device() != OffloadDevice::kNone);
  }
  /// Of what a communicator over `group` ranks allocates.
  [[nodiscard]] MemoryPlace common_place(const PlannedUnit& unit, int group) const {
    if (!on_host(unit)) return MemoryPlace::kDevice;
    return shares_ && group > 1 ? MemoryPlace::kShared : MemoryPlace::kHostPageable;
  }
  /// All ranks use the same bytes, so that there is nothing to gather.
  [[nodiscard]] bool mapped(const PlannedUnit& unit) const { return unit.sizes.params == 1 || shares_; }
  [[nodiscard]] bool gathers(size_t u) const {
    const PlannedUnit& unit = units_.units[u];
    if (!unit.sizes.shards_params) return false;
    if (world_.accelerator && on_host(unit)) return true;
    return in_file_[u] ? unit.sizes.params > 1 : !mapped(unit);
  }
  [[nodiscard]] MemoryPlace pool_place(bool pinned) const {
    return pinned ? MemoryPlace::kHostPinned : MemoryPlace::kHostPageable;
  }

  // ---- parameters

  /// In the order in which the engine meets them: the sharded ones as the model lists them.
  void choose_files() {
    in_file_.assign(units_.units.size(), false);
    if (o_.zero.param_device() != OffloadDevice::kNvme) return;
    plan_.param_path = o_.zero.offload_param->nvme_path.value_or("");
    int64_t resident = 0;
    for (size_t u = units_.units.size(); u-- > 0;) {
      const PlannedUnit& unit = units_.units[u];
      if (!unit.sizes.shards_params) continue;
      resident += unit.layout.total_numel();
      in_file_[u] = resident > resident_share_numel(o_.zero.offload_param->max_in_cpu, OffloadParamOptions().max_in_cpu,
                                                    world_.memory_available_bytes, unit.element_size());
    }
  }

  void add_parameters(size_t u) {
    const PlannedUnit& unit = units_.units[u];
    const int64_t shard = unit.layout.shard_numel() * unit.element_size();
    const int64_t total = unit.layout.total_numel() * unit.element_size();
    const std::string dtype(name_of(unit.dtype));
    if (!unit.sizes.shards_params) {
      plan_.add(PlannedState::kParameters, common_place(unit, unit.sizes.optimizer), total, dtype);
    } else if (in_file_[u]) {
      const int64_t place = round_up(std::max<int64_t>(shard, 1), kPage);
      plan_.add(PlannedState::kParameters, MemoryPlace::kFile, place, dtype);
      plan_.param_file_bytes += place;
      file_params_buffers_ += buffer_bytes(shard);
      largest_file_param_ = std::max(largest_file_param_, shard);
    } else {
      const bool pinned = world_.accelerator && on_host(unit) && o_.zero.offload_param->pin_memory;
      plan_.add(PlannedState::kParameters, pinned ? MemoryPlace::kHostPinned : common_place(unit, unit.sizes.params),
                shard, dtype);
      if (unit.sizes.node > 1 && !mapped(unit)) {
        plan_.add(PlannedState::kParameters, common_place(unit, unit.sizes.node), total / unit.sizes.node,
                  "second shards of hpZ");
      }
    }
  }

  /// Most elements of `which` units that are whole at the same time. max_live_parameters may be exceeded by the unit in
  /// use; units stay gathered when their next use is within max_reuse_distance, which at the turn from forward to
  /// backward is so for half of that distance.
  template <class Which>
  int64_t live_bytes(const Which& which) const {
    int64_t total = 0, largest = 0, widest = 0;
    for (size_t u = 0; u < units_.units.size(); ++u) {
      if (!which(u)) continue;
      const PlannedUnit& unit = units_.units[u];
      total += unit.layout.total_numel();
      largest = std::max(largest, unit.layout.total_numel());
      widest = std::max(widest, unit.element_size());
    }
    const auto sum = [&](int64_t a, int64_t b) { return a > total || b > total ? total : std::min(total, a + b); };
    const int64_t by_live = sum(o_.zero.stage3_max_live_parameters, largest);
    // Without a backward nothing waits for its next use: the unit in use, and those ahead of it (two at least).
    const int64_t by_reuse =
        world_.trains ? sum(o_.zero.stage3_max_reuse_distance / 2, o_.zero.stage3_prefetch_bucket_size + 2 * largest)
                      : sum(largest, std::max(2 * largest, o_.zero.stage3_prefetch_bucket_size + largest));
    return std::min(by_live, by_reuse) * widest;
  }

  void add_gather_buffers() {
    const int64_t gathered = live_bytes([&](size_t u) { return gathers(u); });
    plan_.add(PlannedState::kGather, private_place(world_.accelerator), gathered, "");
    if (largest_file_param_ == 0) return;
    const OffloadParamOptions& offload = *o_.zero.offload_param;
    constexpr int64_t kWidest = 4;
    int64_t largest = 0;
    for (const PlannedUnit& unit : units_.units) {
      if (unit.sizes.shards_params) largest = std::max(largest, unit.layout.shard_numel() * unit.element_size());
    }
    const int64_t pool = param_pool_bytes(std::min(buffers_bytes(offload.buffer_count, offload.buffer_size, kWidest),
                                                   pool_share_bytes(world_.memory_total_bytes)),
                                          largest);
    // A single rank uses parameters in the pool's buffers themselves, and beyond the pool when more are kept.
    const int64_t used = live_bytes([&](size_t u) { return in_file_[u] && !gathers(u); });
    plan_.add(PlannedState::kParamBuffers, pool_place(offload.pin_memory),
              std::min(file_params_buffers_, std::max(pool, used + 2 * kBufferSlackBytes)), "");
  }

  // ---- training

  void add_training() {
    std::vector<size_t> reducing;
    const bool in_files = o_.zero.optimizer_device() == OffloadDevice::kNvme;
    if (in_files) plan_.optimizer_path = o_.zero.offload_optimizer->nvme_path.value_or("");
    int64_t total = 0, placed = 0;
    for (const PlannedUnit& unit : units_.units) total += unit.layout.total_numel();
    const double share = o_.zero.offload_optimizer ? o_.zero.offload_optimizer->ratio : 1.0;
    for (size_t u = 0; u < units_.units.size(); ++u) {
      const PlannedUnit& unit = units_.units[u];
      placed += unit.layout.total_numel();
      if (!unit.trains()) continue;
      const bool offloaded = o_.zero.optimizer_device() != OffloadDevice::kNone &&
                             static_cast<double>(placed) <= share * static_cast<double>(total);
      add_states(unit, offloaded, offloaded && in_files);
      // As GradReducer does it: in a group of one nothing has to leave the rank, but what lives in a file leaves
      // memory.
      if (unit.sizes.reduces_each_micro_batch() || (unit.sizes.shards_grads && gradient_in_file(unit, in_files))) {
        reducing.push_back(u);
        add_gradient_shard(unit, in_files);
      } else {
        add_whole_gradient(unit);
      }
      largest_grad_ = std::max(largest_grad_, unit.largest_autograd_numel * unit.element_size());
      largest_shard_numel_ = std::max(largest_shard_numel_, unit.trained_numel);
    }
    add_buckets(reducing);
    if (in_files) add_state_buffers();
  }

  [[nodiscard]] DType sum_dtype(const PlannedUnit& unit) const {
    return dtype_of(o_.data_types.grad_accum_dtype).value_or(unit.dtype);
  }
  [[nodiscard]] DType bucket_dtype(const PlannedUnit& unit) const {
    return dtype_of(o_.communication_data_type).value_or(unit.dtype);
  }

  void add_whole_gradient(const PlannedUnit& unit) {
    const MemoryPlace place = common_place(unit, unit.sizes.data);
    plan_.add(PlannedState::kGradients, place, unit.layout.total_numel() * size_of(sum_dtype(unit)),
              std::string(name_of(sum_dtype(unit))));
    const bool scaled = o_.gradient_allreduce_op == GradientReduceOp::kMean &&
                        (o_.prescale_gradients || o_.gradient_predivide_factor != 1.0);
    if (unit.sizes.data > 1 && (scaled || bucket_dtype(unit) != sum_dtype(unit))) {
      plan_.add(PlannedState::kReduce, place, unit.layout.total_numel() * size_of(bucket_dtype(unit)), "");
    }
  }

  [[nodiscard]] bool gradient_in_file(const PlannedUnit& unit, bool in_files) const {
    const int64_t bytes = unit.layout.shard_numel() * size_of(sum_dtype(unit));
    return in_files && on_host(unit) && unit.sizes.replicas == 1 && bytes >= kSmallestInFile;
  }

  void add_gradient_shard(const PlannedUnit& unit, bool in_files) {
    const int64_t bytes = unit.layout.shard_numel() * size_of(sum_dtype(unit));
    const bool to_file = gradient_in_file(unit, in_files);
    plan_.add(PlannedState::kGradients, to_file ? MemoryPlace::kFile : private_place(!on_host(unit)),
              to_file ? round_up(bytes, kPage) : bytes, std::string(name_of(sum_dtype(unit))));
    if (!to_file) return;
    plan_.optimizer_file_bytes += round_up(bytes, kPage);
    file_state_buffers_ += buffer_bytes(bytes);
    file_gradients_.push_back(buffer_bytes(bytes));
  }

  /// The pool of buckets in one backward after another, and what is added to shards.
  void add_buckets(const std::vector<size_t>& reducing) {
    std::deque<int64_t> spare, in_flight;
    int64_t now = 0, peak = 0, largest = 0, largest_scratch = 0;
    const auto complete = [&](size_t left) {
      while (in_flight.size() > left) {
        spare.push_back(in_flight.front());
        in_flight.pop_front();
      }
    };
    for (int pass = 0; pass < 2; ++pass) {
      for (const size_t u : reducing) {
        const PlannedUnit& unit = units_.units[u];
        const int64_t bytes = unit.layout.total_numel() * size_of(bucket_dtype(unit));
        int64_t taken = 0;
        if (spare.size() >= kSpareBuckets) {
          auto found = std::find_if(spare.begin(), spare.end(),
                                    [&](int64_t free) { return free >= bytes && free <= 2 * bytes; });
          if (found == spare.end()) found = spare.begin();
          if (*found >= bytes) taken = *found;
          now -= *found - taken;
          spare.erase(found);
        }
        if (taken == 0) now += taken = bytes;
        peak = std::max(peak, now);
        in_flight.push_back(taken);
        complete(kBucketsInFlight);
        largest = std::max(largest, bytes);
        largest_scratch = std::max(largest_scratch, unit.layout.shard_numel() * size_of(bucket_dtype(unit)));
      }
      complete(0);
    }
    if (reducing.empty()) {
      plan_.add(PlannedState::kReduce, private_place(world_.accelerator), largest_grad_, "");
      return;
    }
    const PlannedUnit& any = units_.units[reducing.front()];
    // Gradients of two units may arrive side by side.
    plan_.add(PlannedState::kReduce, common_place(any, any.sizes.grads), peak + largest, "");
    const bool accumulates = o_.gradient_accumulation_steps.value_or(2) > 1 || sum_dtype(any) != bucket_dtype(any);
    constexpr int64_t kScratches = 3;
    plan_.add(PlannedState::kReduce, private_place(!on_host(any)),
              largest_grad_ + (accumulates ? kScratches * largest_scratch : 0), "");
  }

  /// Master and states of one unit.
  void add_states(const PlannedUnit& unit, bool offloaded, bool to_file) {
    const bool moved = offloaded && !on_host(unit);
    const bool shard_is_master = unit.dtype == states_.master && !moved;
    const int64_t limit = to_file ? block_numel() : unit.trained_numel;
    const auto add = [&](PlannedState state, DType dtype, const std::string& remark) {
      for (int64_t done = 0; done < unit.trained_numel; done += limit) {
        const int64_t bytes = std::min(limit, unit.trained_numel - done) * size_of(dtype);
        plan_.add(state, to_file ? MemoryPlace::kFile : private_place(!on_host(unit) && !moved),
                  to_file ? round_up(bytes, kPage) : bytes, remark);
        if (!to_file) continue;
        plan_.optimizer_file_bytes += round_up(bytes, kPage);
        file_state_buffers_ += buffer_bytes(bytes);
      }
    };
    if (!shard_is_master) add(PlannedState::kMaster, states_.master, std::string(name_of(states_.master)));
    for (int i = 0; i < states_.states; ++i) {
      add(PlannedState::kOptimizer, states_.state, fmt::format("{} of {}", states_.states, name_of(states_.state)));
    }
    if (states_.external) {
      plan_.add(PlannedState::kGradients, private_place(!on_host(unit) && !moved),
                unit.trained_numel * size_of(states_.master), "for the optimizer");
    }
    if (moved) staging_ = std::max(staging_, unit.layout.shard_numel() * size_of(sum_dtype(unit)));
    scratch_ = std::max(scratch_, unit.trained_numel * states_.scratch_per_element);
  }

  [[nodiscard]] int64_t block_numel() const {
    const int64_t limit = std::min(kStateBlockNumel, o_.zero.sub_group_size);
    return std::max<int64_t>(limit / ShardLayout::kAlignment, 1) * ShardLayout::kAlignment;
  }

  void add_state_buffers() {
    const OffloadOptimizerOptions& offload = *o_.zero.offload_optimizer;
    const int64_t block = std::min(kStateBlockNumel, o_.zero.sub_group_size);
    int64_t largest_gradient = 0;
    for (const PlannedUnit& unit : units_.units) {
      if (!unit.sizes.shards_grads) continue;
      largest_gradient = std::max(largest_gradient, unit.layout.shard_numel() * size_of(sum_dtype(unit)));
    }
    const int64_t pool =
        state_pool_bytes(buffers_bytes(offload.buffer_count, block, 4), std::min(largest_shard_numel_, block),
                         states_.bytes_per_element(), largest_gradient);
    // Two gradients while one is received, or one beside two blocks of the step: beyond the pool if it must be.
    std::sort(file_gradients_.rbegin(), file_gradients_.rend());
    const int64_t first = file_gradients_.empty() ? 0 : file_gradients_[0];
    const int64_t second = file_gradients_.size() < 2 ? 0 : file_gradients_[1];
    const int64_t blocks = 2 * buffer_bytes(std::min(largest_shard_numel_, block) * states_.bytes_per_element());
    plan_.add(PlannedState::kOptimizerBuffers, pool_place(offload.pin_memory),
              std::min(file_state_buffers_, std::max(pool, first + std::max(second, blocks))), "");
  }

  void add_others() {
    int64_t blocks = 0;
    for (const PlannedUnit& unit : units_.units) {
      for (const int p : unit.params) {
        if (unit.trains()) blocks += (shapes_.params[p].numel() + kernels::kNormBlock - 1) / kernels::kNormBlock;
      }
    }
    plan_.add(PlannedState::kOther, private_place(world_.accelerator), blocks * 8, "norm");
    plan_.add(PlannedState::kOther, MemoryPlace::kHostPageable, staging_, "gradients on their way to the host");
    plan_.add(PlannedState::kOther, private_place(world_.accelerator), scratch_, "updates");
    constexpr int64_t kCommunicator = int64_t{8} << 20;
    if (shares_) plan_.add(PlannedState::kOther, MemoryPlace::kShared, kCommunicator, "communication");
    plan_.add(PlannedState::kOther, MemoryPlace::kHostPageable, world_.program_bytes, "program");
    plan_.notes.push_back("activations are not included");
  }

  /// Engine::begin_forward_pass: what fits stays in memory from pass to pass. Last, because it takes what the rest
  /// leaves.
  void add_residents() {
    const bool adapts = largest_file_param_ > 0 && !world_.trains && world_.memory_available_bytes > 0 &&
                        o_.zero.offload_param->max_in_cpu == OffloadParamOptions().max_in_cpu;
    if (!adapts) return;
    int64_t could = 0;
    for (size_t u = 0; u < units_.units.size(); ++u) {
      const PlannedUnit& unit = units_.units[u];
      if (in_file_[u] && unit.sizes.params == 1) could += unit.layout.total_numel() * unit.element_size();
    }
    const int64_t left =
        world_.memory_available_bytes - residency_reserve_bytes(world_.memory_total_bytes) - plan_.rank_memory_bytes();
    plan_.add(PlannedState::kResident, MemoryPlace::kHostPageable, std::clamp<int64_t>(left, 0, could),
              "what fits, from pass to pass");
  }

  const Options& o_;
  const ModelShapes& shapes_;
  const World& world_;
  MemoryPlan plan_;
  PlannedUnits units_;
  StateSizes states_;
  bool shares_ = false;
  std::vector<bool> in_file_;
  int64_t file_params_buffers_ = 0;  ///< if every parameter in a file were in memory
  int64_t largest_file_param_ = 0;
  int64_t file_state_buffers_ = 0;
  std::vector<int64_t> file_gradients_;
  int64_t largest_grad_ = 0;  ///< of autograd, before it is taken over
  int64_t largest_shard_numel_ = 0;
  int64_t staging_ = 0, scratch_ = 0;
};

}  // namespace

MemoryPlan make_memory_plan(const Config& config, const ModelShapes& shapes, const World& world) {
  DS_CHECK_AS(ConfigError, world.ranks >= 1, "a run has at least one rank, got {}", world.ranks);
  return PlanBuilder(config, shapes, world).run();
}

}  // namespace deepscale
