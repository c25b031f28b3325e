// Reading native checkpoints: every rank reads the slices that its own pieces need, whatever stage and number of ranks
// wrote them. What is no tensor, names and shapes are checked on all ranks before any value is stored.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <future>
#include <set>
#include <system_error>

#include "base/error.h"
#include "base/shape.h"
#include "checkpoint/checkpoint_kind.h"
#include "checkpoint/tag_folder.h"
#include "comm/host_values.h"
#include "engine/checkpoint_names.h"
#include "engine/fragment_batch.h"
#include "engine/module_checkpoint.h"
#include "engine/module_checkpoint_native.h"
#include "platform/files.h"

namespace deepscale {

class ModuleEngine::Impl::NativeLoader {
 public:
  NativeLoader(Impl& owner, std::string folder, const LoadOptions& options)
      : owner_(owner),
        folder_(std::move(folder)),
        options_(options),
        wants_optimizer_(options.optimizer_states && !options.module_only && !owner.optimizer.groups.empty()) {}

  LoadedCheckpoint run() {
    const std::string what = fmt::format("load_checkpoint({})", folder_);
    attempt([&] {
      tensors_ = std::make_unique<NativeTensors>(folder_, owner_.world.rank(), owner_.world.size());
      check_module();
      check_optimizer();
    });
    owner_.agree(problem_, what);
    owner_.engine->zero_grad();
    owner_.engine->begin_load();
    const std::string parts = what + ", of which this engine now holds parts";
    const bool states = saves_states(), one_pass = in_one_pass();
    attempt([&] {
      if (wants_optimizer_) owner_.engine->reset_optimizer(states && all_states_follow());
      read_fragments(/*masters=*/true, states && one_pass);
    });
    store_untrained();
    follow(parts, states && !one_pass);
    if (wants_optimizer_ && saved_optimizer() != nullptr) attempt([&] { restore_optimizer(); });
    owner_.agree(problem_, parts);
    owner_.engine->end_load(wants_optimizer_);
    if (wants_optimizer_ && tensors_->random()) restore_random_state(*tensors_->random());
    return owner_.restore_run(folder_, common(), options_);
  }

 private:
  /// Peers are in the same collectives: a problem with files waits until they are over.
  template <typename Work>
  void attempt(const Work& work) {
    try {
      work();
    } catch (const Error&) {
      if (problem_ == nullptr) problem_ = std::current_exception();
    } catch (const std::exception& error) {
      if (problem_ != nullptr) return;
      problem_ = std::make_exception_ptr(
          CheckpointError(fmt::format("checkpoint {} cannot be understood: {}", folder_, error.what())));
    }
  }

  [[nodiscard]] const PyValue& common() const { return tensors_->common()->root(); }
  /// Null when the engine that saved had none.
  [[nodiscard]] const PyValue* saved_optimizer() const {
    const PyValue* const saved = common().find("optimizer");
    return saved == nullptr || saved->is_none() ? nullptr : saved;
  }

  void check_module() const {
    std::vector<std::string> missing, wrong, unexpected;
    std::set<std::string> known;
    for (const auto& entry : owner_.params.entries) {
      const auto expected = entry.param >= 0 ? owner_.params.params[entry.param].shape : entry.buffer.sizes().vec();
      const ManifestTensor* const stored = tensors_->weight(entry.name);
      if (stored == nullptr) {
        const bool empty = numel_of(expected) == 0;  // of which no rank has a slice
        if (!empty) missing.push_back(entry.name);
        continue;
      }
      known.insert(stored->name.substr(stored->name.find('/') + 1));
      if (stored->shape == expected) continue;
      wrong.push_back(fmt::format("{} has shape [{}], the model's [{}]", entry.name, fmt::join(stored->shape, ", "),
                                  fmt::join(expected, ", ")));
    }
    for (const std::string& name : tensors_->weights()) {
      if (!known.contains(name)) unexpected.push_back(name);
    }
    DS_CHECK_AS(CheckpointMisfit, wrong.empty(), "checkpoint {}: {}", folder_, wrong.empty() ? "" : wrong.front());
    DS_CHECK_AS(
        CheckpointMisfit, !options_.strict || (missing.empty() && unexpected.empty()),
        "checkpoint {} does not fit the model: missing [{}], unexpected [{}]; LoadOptions::strict = false loads "
        "what fits",
        folder_, fmt::join(missing, ", "), fmt::join(unexpected, ", "));
  }

  void check_optimizer() const {
    if (!wants_optimizer_ || saved_optimizer() == nullptr) return;
    const size_t saved = saved_optimizer()->at("param_groups").as_items("param_groups").size();
    DS_CHECK_AS(CheckpointMisfit, saved == owner_.optimizer.groups.size(),
                "checkpoint {} has {} parameter groups, this optimizer {}: pass the same InitializeOptions::groups",
                folder_, saved, owner_.optimizer.groups.size());
    if (!saved_optimizer()->at("has_states").as_int("has_states")) return;
    check_states();
  }

  /// Those of every parameter are the ones that this optimizer has.
  void check_states() const {
    const auto stored = tensors_->states();
    for (size_t g = 0; g < owner_.optimizer.groups.size(); ++g) {
      for (const int p : owner_.optimizer.groups[g].members) {
        const auto& param = owner_.params.params[p];
        std::vector<std::string> wanted;
        for (const std::string& key : owner_.engine->state_keys()) {
          const std::string name = state_name_in_files(owner_.optimizer, static_cast<int>(g), key);
          wanted.push_back(name);
          const bool empty = numel_of(param.shape) == 0;
          DS_CHECK_AS(CheckpointMisfit, empty || name.empty() || tensors_->find(name + "/" + param.name) != nullptr,
                      "checkpoint {} has no state {} of parameter {}: it is of another optimizer, or the parameter was "
                      "frozen when it was saved",
                      folder_, name, param.name);
        }
        const auto found = stored.find(param.name);
        if (found != stored.end()) check_no_others(folder_, param.name, found->second, wanted);
      }
    }
  }

  /// Whether there are states to be read.
  [[nodiscard]] bool saves_states() const {
    return wants_optimizer_ && saved_optimizer() != nullptr &&
           saved_optimizer()->at("has_states").as_int("has_states") != 0;
  }

  /// Masters and states of a parameter one after the other: in files they are neighbours, and what follows masters on a
  /// GPU takes no time of this processor. Else masters come first, and weights follow while states are read.
  [[nodiscard]] bool in_one_pass() const {
    // Weights in files pass through memory that states of the same unit use.
    const auto& files = owner_.engine->file_use();
    return files.optimizer || files.parameters || !owner_.device().is_cpu();
  }

  /// Null when a checkpoint or optimizer has none.
  [[nodiscard]] const ManifestTensor* state_of(size_t group, int param, const std::string& key) const {
    const std::string name = state_name_in_files(owner_.optimizer, static_cast<int>(group), key);
    return name.empty() ? nullptr : tensors_->find(name + "/" + owner_.params.params[param].name);
  }

  /// Whether every state of the engine is read from the checkpoint.
  [[nodiscard]] bool all_states_follow() const {
    for (size_t g = 0; g < owner_.optimizer.groups.size(); ++g) {
      for (const int p : owner_.optimizer.groups[g].members) {
        for (const std::string& key : owner_.engine->state_keys()) {
          if (state_of(g, p, key) == nullptr) return false;
        }
      }
    }
    return true;
  }

  /// This rank's fragments.
  void read_fragments(bool masters, bool states) const {
    FragmentBatch batch(*owner_.engine, *tensors_, at::get_num_threads());
    const auto add = [&](int param, const std::string& key, const ManifestTensor* stored) {
      if (stored != nullptr) batch.add(param, key, *stored);  // null: LoadOptions::strict is false
    };
    for (size_t g = 0; g < owner_.optimizer.groups.size(); ++g) {
      for (const int p : owner_.optimizer.groups[g].members) {
        if (masters) add(p, "fp32", tensors_->weight(owner_.params.params[p].name));
        if (!states) continue;
        for (const std::string& key : owner_.engine->state_keys()) add(p, key, state_of(g, p, key));
      }
    }
    batch.flush();
  }

  /// Agrees, then weights from the masters that were read. Beside that, states are read where they still are to be: no
  /// rank waits for the masters of another one before it goes on reading.
  void follow(const std::string& what, bool states) {
    const auto weights_of_masters = [this, what, problem = problem_] {
      owner_.agree(problem, what);
      if (!owner_.optimizer.groups.empty()) owner_.engine->refresh_parameters();
    };
    if (!states || problem_ != nullptr) return weights_of_masters();
    std::future<void> weights;
    try {
      weights = std::async(std::launch::async, weights_of_masters);
    } catch (const std::system_error&) {  // no thread to be had
      weights_of_masters();
    }
    attempt([&] { read_fragments(/*masters=*/false, /*states=*/true); });
    if (weights.valid()) weights.get();
  }

  /// Weights without a master copy here, and buffers. Collective: all ranks hold the same names in the same order.
  void store_untrained() {
    std::vector<bool> done(owner_.params.params.size(), false);
    for (const auto& entry : owner_.params.entries) {
      const bool again = entry.param >= 0 && done[entry.param];
      const bool trained = entry.param >= 0 && optimizer_group_of(owner_.optimizer, entry.param) >= 0;
      const ManifestTensor* const stored = tensors_->weight(entry.name);
      if (again || trained || stored == nullptr) continue;
      at::Tensor value = at::zeros(stored->shape, at::TensorOptions(to_scalar_type(stored->dtype)));
      attempt([&] { value = tensors_->read_whole(*stored); });
      if (entry.param < 0) {
        entry.buffer.copy_(value);
      } else {
        done[entry.param] = true;
        owner_.engine->write_full(entry.param, "fp32", value.to(at::kFloat));
      }
    }
  }

  void restore_optimizer() const {
    const PyValue& saved = *saved_optimizer();
    const auto number = [this](const PyValue& value, const char* what) {
      if (!value.is(PyKind::kTensor)) return value.as_double(what);
      const at::Tensor tensor = tensors_->common()->read(value.node()->tensor);
      DS_CHECK_AS(CheckpointError, tensor.numel() == 1, "{} is no single number", what);
      return tensor.item<double>();
    };
    std::vector<const PyValue*> groups;
    for (const PyValue& group : saved.at("param_groups").as_items("param_groups")) groups.push_back(&group);
    owner_.restore_settings(groups, number);
    std::optional<double> step;
    if (const PyValue* const stored = saved.find("step"); stored != nullptr && !stored->is_none()) {
      step = number(*stored, "step");
    } else if (const PyValue* const scalars = saved.find("scalars")) {  // an optimizer of torch has one per parameter
      for (const auto& [name, state] : scalars->as_entries("scalars")) {
        const PyValue* const own = state->find("step");
        if (own != nullptr) step = std::max(step.value_or(0.0), number(*own, "step"));
      }
    }
    if (step) owner_.engine->set_optimizer_steps(static_cast<int64_t>(*step));
    owner_.restore_scaler(saved);
  }

  Impl& owner_;
  std::string folder_;
  const LoadOptions& options_;
  bool wants_optimizer_;
  std::unique_ptr<NativeTensors> tensors_;
  std::exception_ptr problem_;
};

LoadedCheckpoint ModuleEngine::Impl::load_tag(const std::string& folder, const LoadOptions& options) {
  CheckpointKind kind = CheckpointKind::kNone;
  try {
    if (world.rank() == 0) kind = checkpoint_kind(folder);
  } catch (const Error&) {
    // Files that cannot be looked at: whoever opens them says why.
  }
  kind = static_cast<CheckpointKind>(
      broadcast_values(world, device(), {static_cast<int64_t>(kind)}, 0, "kind of a checkpoint").front());
  DS_CHECK_AS(CheckpointMisfit, kind != CheckpointKind::kUniversal,
              "{} is a universal checkpoint, which this API does not read: load it in Python with "
              "checkpoint.load_universal and save it there",
              folder);
  if (kind == CheckpointKind::kNative) return NativeLoader(*this, folder, options).run();
  return load_files(folder, options);
}

LoadedCheckpoint ModuleEngine::Impl::load_named(const std::string& directory, const LoadOptions& options) {
  std::exception_ptr failure;
  try {
    return load_tag(directory + "/" + options.tag, options);
  } catch (const CommError&) {
    throw;  // the others are not there to be asked
  } catch (const Error&) {
    failure = std::current_exception();
  }
  const std::vector<std::string> others = tags_instead(directory, options.tag, failure);
  try {
    std::rethrow_exception(failure);
  } catch (const CheckpointError& error) {
    if (others.empty()) throw;
    ds_throw<CheckpointError>("{}\nThe newest other checkpoint in {} whose files are all there is {}", error.what(),
                              directory, others.front());
  }
}

std::vector<std::string> ModuleEngine::Impl::tags_instead(const std::string& directory, const std::string& tag,
                                                          const std::exception_ptr& failure) const {
  try {
    // One that is whole but of another model or optimizer: an older one would hide the mistake.
    return is_misfit(failure) ? std::vector<std::string>() : older_tags(directory, tag);
  } catch (const CommError&) {
    std::rethrow_exception(failure);  // of this rank alone, which says more
  }
}

bool ModuleEngine::Impl::is_misfit(const std::exception_ptr& failure) const {
  int64_t mine = 0;
  try {
    std::rethrow_exception(failure);
  } catch (const CheckpointMisfit&) {
    mine = 1;
  } catch (const Error&) {
  }
  return all_reduce_values(world, device(), {mine}, ReduceOp::kMax, "a checkpoint that does not fit").front() != 0;
}

std::optional<LoadedCheckpoint> ModuleEngine::Impl::load(const std::string& directory, const LoadOptions& options) {
  const c10::NoGradGuard no_grad;
  wait_for_save();
  if (world.rank() == 0) {
    try {
      // A tag may be a path.
      const std::string path = directory + "/" + options.tag;
      restore_replaced(path.substr(0, path.rfind('/')));
    } catch (const IoError& error) {
      log.warning("{}", error.what());
    }
  }
  if (!options.tag.empty()) return load_named(directory, options);
  const std::optional<std::string> tag = latest_tag(directory);
  if (!tag) {
    if (world.rank() == 0) log.warning("there is no file {}/latest: pass a tag, or check the directory", directory);
    return std::nullopt;
  }
  return load_newest(directory, *tag, options);
}

LoadedCheckpoint ModuleEngine::Impl::load_newest(const std::string& directory, const std::string& tag,
                                                 const LoadOptions& options) {
  std::vector<std::string> tags = {tag};
  std::exception_ptr first;
  for (size_t i = 0;; ++i) {
    std::string problem;
    std::exception_ptr failure;
    try {
      return load_tag(directory + "/" + tags[i], options);
    } catch (const CommError&) {
      throw;  // the others are not there to try something else
    } catch (const Error& error) {
      problem = error.what();
      failure = std::current_exception();
    }
    if (first == nullptr) first = failure;
    const std::vector<std::string> others = tags_instead(directory, tag, failure);
    if (i == 0) tags.insert(tags.end(), others.begin(), others.end());
    if (others.empty() || i + 1 == tags.size()) std::rethrow_exception(first);
    if (world.rank() == 0) log.warning("{}\nThe checkpoint {} is tried instead", problem, tags[i + 1]);
  }
}

/// Checkpoints with a manifest whose files are all there, newest first, as rank 0 sees them.
std::vector<std::string> ModuleEngine::Impl::older_tags(const std::string& directory, const std::string& latest) const {
  std::string joined;
  if (world.rank() == 0) {
    for (const TagFacts& facts : list_tags(directory)) {
      if (facts.tag != latest && facts.problem.empty()) joined += facts.tag + "/";
    }
  }
  std::vector<std::string> tags;
  joined = text_of_rank_0(joined, "older checkpoints");
  for (size_t begin = 0; begin < joined.size();) {
    const size_t end = joined.find('/', begin);
    tags.push_back(joined.substr(begin, end - begin));
    begin = end + 1;
  }
  return tags;
}

}  // namespace deepscale
