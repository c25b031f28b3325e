// Reading checkpoints. All files are opened and checked on every rank before any rank stores a value; then every rank
// reads what its own pieces need, whatever stage and number of ranks wrote the files.
#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <exception>

#include "base/error.h"
#include "base/shape.h"
#include "checkpoint/optimizer_files.h"
#include "checkpoint/tag_folder.h"
#include "checkpoint/torch_file.h"
#include "checkpoint/verified_file.h"
#include "comm/host_values.h"
#include "engine/checkpoint_names.h"
#include "engine/module_checkpoint.h"
#include "engine/module_checkpoint_native.h"
#include "platform/files.h"

namespace deepscale {
namespace {

constexpr std::string_view kModelSuffix = "_mp_rank_00_model_states.pt";
constexpr std::string_view kOptimizerSuffix = "_mp_rank_00_optim_states.pt";

/// Files named [prefix]zero_pp_rank_<r><suffix>, by rank. Throws CheckpointError when one in between is missing.
std::map<int, std::string> files_by_rank(const std::string& folder, std::string_view suffix) {
  constexpr std::string_view kMarker = "zero_pp_rank_";
  std::map<int, std::string> found;
  for (const auto& name : list_directory(folder)) {
    const size_t marker = name.find(kMarker);
    if (marker == std::string::npos || !name.ends_with(suffix)) continue;
    const size_t begin = marker + kMarker.size();
    int rank = -1;
    const auto [end, problem] = std::from_chars(name.data() + begin, name.data() + name.size(), rank);
    if (problem == std::errc() && rank >= 0 && end == name.data() + name.size() - suffix.size()) {
      found[rank] = folder + "/" + name;
    }
  }
  int expected = 0;
  for (const auto& [rank, path] : found) {
    DS_CHECK_AS(CheckpointError, rank == expected,
                "checkpoint {}: the file of rank {} is missing beside {}: the checkpoint is not complete", folder,
                expected, path);
    ++expected;
  }
  return found;
}

std::optional<ClientValue> to_client(const PyValue& value) {
  if (const auto* flag = value.get_if<bool>()) return *flag;
  if (const auto* whole = value.get_if<int64_t>()) return *whole;
  if (const auto* real = value.get_if<double>()) return *real;
  if (const auto* text = value.get_if<std::string>()) return *text;
  return std::nullopt;
}

}  // namespace

void check_no_others(const std::string& folder, const std::string& param, const std::vector<std::string>& stored,
                     const std::vector<std::string>& wanted) {
  for (const std::string& name : stored) {
    DS_CHECK_AS(CheckpointMisfit, std::find(wanted.begin(), wanted.end(), name) != wanted.end(),
                "checkpoint {} has {} of parameter {}, but this optimizer has no {}: it was saved with another one; "
                "LoadOptions::optimizer_states = false loads the weights alone",
                folder, fmt::join(stored, ", "), param, name);
  }
}

class ModuleEngine::Impl::Loader {
 public:
  Loader(Impl& owner, std::string folder, const LoadOptions& options)
      : owner_(owner),
        folder_(std::move(folder)),
        options_(options),
        wants_optimizer_(options.optimizer_states && !options.module_only && !owner.optimizer.groups.empty()) {}

  LoadedCheckpoint run() {
    std::exception_ptr problem;
    try {
      check_files();
      open();
      check_module();
      check_optimizer();
      if (has_random_ && saved_ranks_ == owner_.world.size()) random_ = read_random_state(folder_, owner_.world.rank());
    } catch (const Error&) {
      problem = std::current_exception();
    } catch (const std::exception& error) {
      problem = std::make_exception_ptr(
          CheckpointError(fmt::format("checkpoint {} cannot be understood: {}", folder_, error.what())));
    }
    owner_.agree(problem, fmt::format("load_checkpoint({})", folder_));
    owner_.engine->zero_grad();
    store_module();
    if (wants_optimizer_ && states_ != nullptr) restore_optimizer();
    if (wants_optimizer_ && random_) restore_random_state(*random_);
    return owner_.restore_run(folder_, first(), options_);
  }

 private:
  using File = std::shared_ptr<const TorchFile>;

  static File open_file(const std::string& path) { return std::make_shared<const TorchFile>(TorchFile::open(path)); }

  [[nodiscard]] const PyValue& first() const { return models_.front()->root(); }
  [[nodiscard]] const std::string& first_path() const { return models_.front()->path(); }

  // --- opening
  /// Where there is a manifest, every byte is read once, by one rank or the other. Files that are missing: open() knows
  /// whether they are needed.
  void check_files() {
    if (!file_size(folder_ + "/" + kManifestName)) return;
    const Manifest manifest = read_manifest(folder_);
    for (size_t f = 0; f < manifest.files.size(); ++f) {
      has_random_ = has_random_ || manifest.files[f].name == native_rank_file(owner_.world.rank());
      if (static_cast<int>(f % owner_.world.size()) != owner_.world.rank()) continue;
      if (!file_size(folder_ + "/" + manifest.files[f].name)) continue;
      const auto problems = verify_file(folder_, manifest.files[f], 1, caching_before_loading(manifest));
      DS_CHECK_AS(CheckpointError, problems.empty(), "{}", problems.empty() ? "" : problems.front());
    }
  }

  void open() {
    const auto pieces = files_by_rank(folder_, kModelSuffix);
    in_pieces_ = !pieces.empty() && !file_size(whole_model_file(folder_)).has_value();
    if (in_pieces_) {
      for (const auto& [rank, path] : pieces) models_.push_back(open_file(path));
    } else {
      models_.push_back(open_file(whole_model_file(folder_)));
    }
    for (const char* key : {"module", "global_steps", "dp_world_size"}) {
      DS_CHECK_AS(CheckpointError, first().find(key) != nullptr, "{} has no entry \"{}\": it is not a model-state file",
                  first_path(), key);
    }
    saved_ranks_ = first().at("dp_world_size").as_int("dp_world_size");
    DS_CHECK_AS(CheckpointError, !in_pieces_ || static_cast<int64_t>(models_.size()) == saved_ranks_,
                "checkpoint {} was saved by {} ranks, but has {} model files: files are missing", folder_, saved_ranks_,
                models_.size());
    if (in_pieces_ || wants_optimizer_) open_optimizer();
  }

  void open_optimizer() {
    const PyValue* in_model = first().find("optimizer");
    if (in_model != nullptr && !in_model->is_none()) {
      if (!wants_optimizer_) return;
      std::vector<std::vector<StoredParam>> groups;
      for (const auto& group : owner_.optimizer.groups) {
        groups.emplace_back();
        for (const int p : group.members) {
          groups.back().push_back({owner_.params.params[p].name, owner_.params.params[p].shape});
        }
      }
      states_ = std::make_unique<OptimizerFiles>(std::vector<const PyValue*>{in_model}, std::vector<File>{models_[0]},
                                                 std::move(groups));
      return;
    }
    const PyValue* shapes = first().find("param_shapes");
    if (shapes == nullptr || shapes->is_none()) return;  // saved by an engine without optimizer
    const auto paths = files_by_rank(folder_, kOptimizerSuffix);
    DS_CHECK_AS(
        CheckpointError, !paths.empty(),
        "checkpoint {} has no optimizer files (*_optim_states.pt): they are missing; to load the weights alone set "
        "LoadOptions::optimizer_states to false",
        folder_);
    DS_CHECK_AS(CheckpointError, static_cast<int64_t>(paths.size()) == saved_ranks_,
                "checkpoint {} was saved by {} ranks, but has {} optimizer files: files are missing", folder_,
                saved_ranks_, paths.size());
    std::vector<const PyValue*> states;
    std::vector<File> files;
    for (const auto& [rank, path] : paths) {
      files.push_back(open_file(path));
      const PyValue* state = files.back()->root().find("optimizer_state_dict");
      DS_CHECK_AS(CheckpointError, state != nullptr,
                  "{} has no entry \"optimizer_state_dict\": it is not an optimizer-state file", path);
      states.push_back(state);
    }
    states_ = std::make_unique<OptimizerFiles>(std::move(states), std::move(files), stored_params(*shapes));
  }

  // --- the model
  /// The name under which files store a parameter that has several.
  [[nodiscard]] std::string stored_name(const std::string& name) const {
    const PyValue* shared = first().find("shared_params");
    const PyValue* source = shared == nullptr ? nullptr : shared->find(name);
    return source == nullptr ? name : source->as_string("shared_params");
  }

  [[nodiscard]] std::optional<std::vector<int64_t>> stored_shape(const std::string& name) const {
    if (in_pieces_) {
      const std::string source = stored_name(name);
      if (const StoredParam* stored = states_ == nullptr ? nullptr : states_->find(source)) return stored->shape;
      const PyValue* frozen = first().find("frozen_param_shapes");
      const PyValue* shape = frozen == nullptr ? nullptr : frozen->find(source);
      if (shape != nullptr) return shape->as_shape("frozen_param_shapes");
    }
    const PyValue* value = first().at("module").find(name);
    if (value == nullptr || !value->is(PyKind::kTensor)) return std::nullopt;
    return value->node()->tensor.sizes;
  }

  void check_module() {
    const PyValue& module = first().at("module");
    DS_CHECK_AS(CheckpointError, module.is_dict(), "{}: \"module\" is not a dictionary", first_path());
    std::vector<std::string> missing, wrong, unexpected;
    for (const auto& entry : owner_.params.entries) {
      const auto& expected = entry.param >= 0 ? owner_.params.params[entry.param].shape : entry.buffer.sizes().vec();
      const auto found = stored_shape(entry.name);
      if (!found) {
        missing.push_back(entry.name);
      } else if (*found != expected) {
        wrong.push_back(fmt::format("{} has shape [{}], the model's [{}]", entry.name, fmt::join(*found, ", "),
                                    fmt::join(expected, ", ")));
      }
    }
    for (const auto& [name, value] : module.as_entries("module")) {
      const bool known = std::any_of(owner_.params.entries.begin(), owner_.params.entries.end(),
                                     [&, &wanted = name](const auto& entry) { return entry.name == wanted; });
      if (!known) unexpected.push_back(name);
    }
    DS_CHECK_AS(CheckpointMisfit, wrong.empty(), "{}: {}", first_path(), wrong.empty() ? "" : wrong.front());
    DS_CHECK_AS(CheckpointMisfit, !options_.strict || (missing.empty() && unexpected.empty()),
                "{} does not fit the model: missing [{}], unexpected [{}]; LoadOptions::strict = false loads what fits",
                first_path(), fmt::join(missing, ", "), fmt::join(unexpected, ", "));
    if (in_pieces_) check_pieces();
  }

  void check_pieces() const {
    for (const auto& param : owner_.params.params) {
      const std::string source = stored_name(param.name);
      if (states_ != nullptr && states_->find(source) != nullptr) {
        states_->check(source, "fp32");
      } else if (stored_shape(param.name)) {
        (void)frozen_pieces(source);
      }
    }
  }

  [[nodiscard]] std::vector<const PyTensor*> frozen_pieces(const std::string& name) const {
    std::vector<const PyTensor*> pieces;
    for (const auto& model : models_) {
      pieces.push_back(&model->root().at("frozen_param_fragments").at(name).as_tensor(name));
    }
    return pieces;
  }

  [[nodiscard]] std::optional<at::Tensor> stored_value(const std::string& name) const {
    if (in_pieces_) {
      const std::string source = stored_name(name);
      if (states_ != nullptr && states_->find(source) != nullptr) return states_->read_whole(source, "fp32");
      const auto shape = stored_shape(name);
      if (!shape) return std::nullopt;
      std::vector<at::Tensor> values;
      const auto pieces = frozen_pieces(source);
      for (size_t r = 0; r < pieces.size(); ++r) values.push_back(models_[r]->read(*pieces[r]).reshape({-1}));
      return at::cat(values).narrow(0, 0, c10::multiply_integers(*shape)).view(*shape);
    }
    const PyValue* value = first().at("module").find(name);
    if (value == nullptr || !value->is(PyKind::kTensor)) return std::nullopt;
    return models_[0]->read(value->node()->tensor);
  }

  /// Collective: all ranks hold the same names in the same order.
  void store_module() {
    std::vector<bool> done(owner_.params.params.size(), false);
    for (const auto& entry : owner_.params.entries) {
      if (!stored_shape(entry.name)) continue;
      if (entry.param < 0) {
        const PyValue& value = first().at("module").at(entry.name);
        entry.buffer.copy_(models_[0]->read(value.as_tensor(entry.name)));
        continue;
      }
      if (done[entry.param]) continue;
      done[entry.param] = true;
      const auto value = stored_value(entry.name);
      if (value) owner_.engine->write_full(entry.param, "fp32", value->to(at::kFloat));
    }
  }

  // --- the optimizer
  void check_optimizer() const {
    if (!wants_optimizer_ || states_ == nullptr) return;
    for (size_t g = 0; g < owner_.optimizer.groups.size(); ++g) {
      for (const int p : owner_.optimizer.groups[g].members) {
        const auto& param = owner_.params.params[p];
        const StoredParam* stored = states_->find(param.name);
        DS_CHECK_AS(
            CheckpointMisfit, stored != nullptr,
            "checkpoint {} has no optimizer state for parameter {}: it is of another model, or the parameter was "
            "frozen when it was saved",
            folder_, param.name);
        DS_CHECK_AS(CheckpointMisfit, stored->shape == param.shape,
                    "checkpoint {}: parameter {} has shape [{}] in the optimizer's files, [{}] in the model", folder_,
                    param.name, fmt::join(stored->shape, ", "), fmt::join(param.shape, ", "));
        states_->check(param.name, "fp32");
        std::vector<std::string> wanted;
        for (const auto& key : owner_.engine->state_keys()) {
          const auto names = state_names_to_read(owner_.optimizer, static_cast<int>(g), key);
          check_state(param.name, names);
          wanted.insert(wanted.end(), names.begin(), names.end());
        }
        check_no_others(folder_, param.name, states_->state_keys(param.name), wanted);
      }
    }
    const size_t saved = states_->param_groups().size();
    DS_CHECK_AS(CheckpointMisfit, saved == 0 || saved == owner_.optimizer.groups.size(),
                "checkpoint {} has {} parameter groups, this optimizer {}: pass the same InitializeOptions::groups",
                folder_, saved, owner_.optimizer.groups.size());
    (void)states_->step();
  }

  /// names: of one state. A parameter without any state was never updated; one with others, by another optimizer.
  void check_state(const std::string& param, const std::vector<std::string>& names) const {
    for (const auto& name : names) states_->check(param, name);
    const std::vector<std::string> stored = states_->state_keys(param);
    const auto is_stored = [&](const std::string& name) {
      return std::find(stored.begin(), stored.end(), name) != stored.end();
    };
    DS_CHECK_AS(CheckpointMisfit, names.empty() || stored.empty() || std::any_of(names.begin(), names.end(), is_stored),
                "checkpoint {} has {} of parameter {}, but not {}, which this optimizer needs: it was saved with "
                "another one; LoadOptions::optimizer_states = false loads the weights alone",
                folder_, fmt::join(stored, ", "), param, names.empty() ? "" : names.front());
  }

  void restore_optimizer() {
    const bool from_masters = owner_.config->zero.load_from_fp32_weights && states_->has_masters();
    std::exception_ptr problem;
    try {
      read_optimizer(from_masters);
    } catch (const Error&) {
      problem = std::current_exception();
    }
    owner_.agree(problem, fmt::format("load_checkpoint({}), of which this engine now holds parts", folder_));
    if (from_masters) {
      owner_.engine->refresh_parameters();
    } else {
      owner_.engine->refresh_from_parameters();
    }
    owner_.engine->end_load();
  }

  /// This rank's fragments, and what is no tensor.
  void read_optimizer(bool from_masters) {
    owner_.engine->reset_optimizer();  // files may lack states: those of an engine that had not stepped
    for (size_t g = 0; g < owner_.optimizer.groups.size(); ++g) {
      for (const int p : owner_.optimizer.groups[g].members) {
        const std::string& name = owner_.params.params[p].name;
        const auto range = owner_.engine->fragment_of(p);
        if (range.length == 0) continue;
        const auto master =
            from_masters ? states_->read(name, "fp32", range.offset, range.length) : std::optional<at::Tensor>();
        if (master) owner_.engine->write_local(p, "fp32", *master);
        for (const auto& key : owner_.engine->state_keys()) {
          for (const auto& stored : state_names_to_read(owner_.optimizer, static_cast<int>(g), key)) {
            const auto value = states_->read(name, stored, range.offset, range.length);
            if (value) owner_.engine->write_local(p, key, *value);
          }
        }
      }
    }
    if (const auto step = states_->step()) owner_.engine->set_optimizer_steps(*step);
    owner_.restore_settings(states_->param_groups(),
                            [this](const PyValue& value, const char* what) { return states_->number(value, what); });
    owner_.restore_scaler(states_->state_of_rank(owner_.world.rank()));
  }

  Impl& owner_;
  std::string folder_;
  const LoadOptions& options_;
  bool wants_optimizer_;
  bool has_random_ = false;           ///< DeepSpeed's own checkpoints have no such file
  std::optional<at::Tensor> random_;  ///< state of this rank's random numbers
  bool in_pieces_ = false;            ///< values of parameters are only in the optimizer files
  int64_t saved_ranks_ = 1;
  std::vector<File> models_;
  std::unique_ptr<OptimizerFiles> states_;
};

LoadedCheckpoint ModuleEngine::Impl::load_files(const std::string& folder, const LoadOptions& options) {
  return Loader(*this, folder, options).run();
}

// ---------------------------------------------------------------- what every layout has
void ModuleEngine::Impl::restore_settings(const std::vector<const PyValue*>& saved, const ReadNumber& number) {
  for (size_t g = 0; g < std::min(saved.size(), optimizer.groups.size()); ++g) {
    GroupHyper& hyper = optimizer.groups[g].hyper;
    for (const char* key : {"lr", "eps", "weight_decay", "momentum", "dampening"}) {
      const PyValue* value = saved[g]->find(key);
      if (value != nullptr && hyper.contains(key)) hyper[key] = number(*value, key);
    }
    const PyValue* betas = saved[g]->find("betas");
    if (betas == nullptr || !hyper.contains("beta1") || betas->as_items("betas").size() != 2) continue;
    hyper["beta1"] = number(betas->as_items("betas")[0], "betas");
    hyper["beta2"] = number(betas->as_items("betas")[1], "betas");
  }
}

void ModuleEngine::Impl::restore_scaler(const PyValue& state) {
  const PyValue* object = state.find("loss_scaler");
  const PyValue& values = object == nullptr ? state : *object;
  const PyValue* scale = values.find("cur_scale");
  if (scale == nullptr) return;
  LossScaler& scaler = engine->loss_scaler();
  LossScaler::State now = scaler.state();
  now.scale = scale->as_double("cur_scale");
  const auto take = [&](const char* key, int64_t& into) {
    if (const PyValue* value = values.find(key)) into = value->as_int(key);
  };
  take("cur_iter", now.iteration);
  take("last_overflow_iter", now.last_overflow);
  take("cur_hysteresis", now.hysteresis_left);
  scaler.load(now);
}

LoadedCheckpoint ModuleEngine::Impl::restore_run(const std::string& folder, const PyValue& saved,
                                                 const LoadOptions& options) {
  if (!options.module_only) {
    const PyValue* state = saved.find("lr_scheduler");
    if (options.lr_scheduler_states && schedule != nullptr && state != nullptr &&
        state->find("last_batch_iteration") != nullptr) {
      schedule->set_last_batch_iteration(state->at("last_batch_iteration").as_int("lr_scheduler.last_batch_iteration"));
    }
    global_steps = saved.at("global_steps").as_int("global_steps");
    micro_steps = global_steps * config->gradient_accumulation_steps.value_or(1);
    const auto counted = [&](const char* key, int64_t fallback) {
      const PyValue* value = saved.find(key);
      return value == nullptr ? fallback : value->as_int(key);
    };
    global_samples = counted("global_samples", global_steps * config->train_batch_size.value_or(0));
    skipped_steps = counted("skipped_steps", 0);
  }
  LoadedCheckpoint loaded{folder, {}};
  for (const auto& [name, value] : saved.as_entries("the model file")) {
    if (std::find(kModelFileEntries.begin(), kModelFileEntries.end(), name) != kModelFileEntries.end()) continue;
    if (const auto held = to_client(*value)) loaded.client_state[name] = *held;
  }
  return loaded;
}

/// The same text on every rank, since not all hosts may see the same files.
std::string ModuleEngine::Impl::text_of_rank_0(const std::string& text, const char* what) const {
  std::vector<int64_t> letters(text.begin(), text.end());
  const auto length = broadcast_values(world, device(), {static_cast<int64_t>(letters.size())}, 0, what).front();
  letters.resize(static_cast<size_t>(length));
  if (length > 0) letters = broadcast_values(world, device(), std::move(letters), 0, what);
  return {letters.begin(), letters.end()};
}

/// Nothing without a file, an empty text when it is damaged.
std::optional<std::string> ModuleEngine::Impl::latest_tag(const std::string& directory) const {
  const std::optional<std::string> tag = world.rank() == 0 ? read_latest(directory) : std::nullopt;
  const std::string text = text_of_rank_0(tag ? "=" + *tag : "", "latest");
  return text.empty() ? std::nullopt : std::optional(text.substr(1));
}

// ---------------------------------------------------------------- the public methods
void ModuleEngine::save_checkpoint(const std::string& directory, const SaveOptions& options) {
  impl_->save(directory, options);
}
std::optional<LoadedCheckpoint> ModuleEngine::load_checkpoint(const std::string& directory,
                                                              const LoadOptions& options) {
  return impl_->load(directory, options);
}
void ModuleEngine::wait_for_checkpoint() {
  impl_->wait_for_save();
}
void ModuleEngine::save_weights(const std::string& path) {
  impl_->save_weights(path);
}

}  // namespace deepscale
