// Writing checkpoints: whole values are read one parameter at a time (collective) and each rank keeps its piece.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "base/environment.h"
#include "base/error.h"
#include "base/hash.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/state_layout.h"
#include "checkpoint/tag_folder.h"
#include "checkpoint/torch_file.h"
#include "comm/host_values.h"
#include "config/json_text.h"
#include "engine/checkpoint_names.h"
#include "engine/module_checkpoint.h"
#include "engine/module_checkpoint_native.h"
#include "engine/optimizer_state_writer.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {

std::vector<std::vector<int>> file_groups(const ConfiguredOptimizer& optimizer, const ModelParams& params,
                                          const ZeroOptions& zero, int ranks) {
  const StateFileForm form = state_file_form(zero);
  std::vector<std::vector<int>> groups;
  for (const auto& group : optimizer.groups) {
    const auto member = [&](int position) { return group.members[position]; };
    std::vector<std::vector<int>> parts;
    if (form == StateFileForm::kPerParameter) {
      std::vector<int64_t> numels;
      for (const int p : group.members) numels.push_back(c10::multiply_integers(params.params[p].shape));
      parts = sub_groups(numels, ranks, zero.sub_group_size);
    } else if (form == StateFileForm::kPartitioned && zero.round_robin_gradients) {
      parts = {round_robin(static_cast<int>(group.members.size()), ranks)};
    } else {
      parts = {round_robin(static_cast<int>(group.members.size()), 1)};  // as they are
    }
    for (auto& part : parts) {
      std::transform(part.begin(), part.end(), part.begin(), member);
      groups.push_back(std::move(part));
    }
  }
  return groups;
}

int optimizer_group_of(const ConfiguredOptimizer& optimizer, int param) {
  for (size_t g = 0; g < optimizer.groups.size(); ++g) {
    const auto& members = optimizer.groups[g].members;
    if (std::find(members.begin(), members.end(), param) != members.end()) return static_cast<int>(g);
  }
  return -1;
}

std::string state_name_in_files(const ConfiguredOptimizer& optimizer, int group, const std::string& state) {
  if (optimizer.state_class == "Adagrad" && state == "exp_avg_sq") return "sum";
  const bool muon = hyper_value(optimizer.groups[group].hyper, "use_muon", 0) != 0;
  if (muon) return state == "exp_avg" ? "momentum_buffer" : "";
  return state;
}

std::vector<std::string> state_names_to_read(const ConfiguredOptimizer& optimizer, int group,
                                             const std::string& state) {
  const std::string name = state_name_in_files(optimizer, group, state);
  if (name.empty()) return {};
  // Adagrad's sum of squares: torch's name, and that of the class for states that are offloaded.
  if (optimizer.native.kind == OptimizerKind::kAdagrad) return {name, name == "sum" ? "exp_avg_sq" : "sum"};
  return {name};
}

namespace {

using config::Json;

PyValue from_json(const Json& json, PyDocument& document) {
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_float()) return json.get<double>();
  if (json.is_number()) return json.get<int64_t>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array()) {
    PyNode* list = document.list();
    for (const Json& item : json) list->add(from_json(item, document));
    return list;
  }
  if (!json.is_object()) return {};
  PyNode* dict = document.dict();
  for (const auto& [key, value] : json.items()) dict->set(key, from_json(value, document));
  return dict;
}

PyValue from_client(const ClientValue& value) {
  return std::visit([](const auto& held) { return PyValue(held); }, value);
}

}  // namespace

class ModuleEngine::Impl::Saver {
 public:
  Saver(Impl& owner, std::string directory, const SaveOptions& options)
      : owner_(owner),
        zero_(owner.config->zero),
        form_(state_file_form(zero_)),
        directory_(std::move(directory)),
        options_(options),
        ranks_(owner.world.size()),
        rank_(owner.world.rank()) {}

  void run() {
    check_client_state();
    const std::string tag = options_.tag.empty() ? "global_step" + std::to_string(owner_.global_steps) : options_.tag;
    check_tag(tag);
    split_path(directory_ + "/" + tag);
    what_ = fmt::format("save_checkpoint({}/{})", directory_, tag);
    if (rank_ == 0) attempt([&] { begin_save(parent_, name_); });
    owner_.agree(problem_, what_);  // the folder is there for all
    const bool native = owner_.config->checkpoint.format == "native";
    if (native) {
      write_native();
    } else {
      const bool trains = !owner_.optimizer.groups.empty();
      write_model_file(trains);
      if (trains && form_ != StateFileForm::kWhole) write_optimizer_file();
    }
    write_random_state();
    agree();
    finish(native, tag);
    agree();
  }

 private:
  /// The folder of tags and the tag's name in it: a tag may be a path below the directory.
  void split_path(const std::string& path) {
    const size_t slash = path.rfind('/');
    parent_ = path.substr(0, slash);
    name_ = path.substr(slash + 1);
  }

  /// Peers are in the same collectives: a problem with files waits until they are over.
  template <typename Write>
  void attempt(const Write& write) {
    try {
      write();
    } catch (const std::exception&) {
      if (problem_ == nullptr) problem_ = std::current_exception();
    }
  }

  /// One outcome on all ranks; what a failed save left behind goes.
  void agree(SaveJob* job = nullptr) {
    try {
      owner_.agree(problem_, what_);
    } catch (...) {
      if (job != nullptr) job->cancel();
      owner_.remove_failed_save(parent_, name_);
      throw;
    }
  }

  /// Checksums, the manifest, and the folder under its name; beside training where that is wanted and possible.
  void finish(bool native, const std::string& tag) {
    const CheckpointOptions& checkpoint = owner_.config->checkpoint;
    SavePlan plan;
    plan.save_dir = parent_;
    plan.tag = name_;
    plan.layout = native ? "native" : "deepspeed";
    plan.rank = rank_;
    plan.tensor_file = native_tensor_file(rank_);
    plan.threads = at::get_num_threads();
    plan.commits = rank_ == 0;
    plan.commit.ranks = ranks_;
    plan.commit.info = info();
    plan.commit.write_latest = options_.save_latest;
    if (parent_ != directory_) {
      plan.commit.latest_dir = directory_;
      plan.commit.latest_text = tag;
    }
    plan.commit.keep_last = static_cast<int>(checkpoint.keep_last);
    const bool wanted = checkpoint.async_save || (checkpoint.writer && checkpoint.writer->decoupled);
    const bool beside = wanted && !owner_.engine->file_use().optimizer && has_room();
    std::unique_ptr<SaveJob> job;
    if (owner_.save_memory == nullptr) owner_.save_memory = std::make_shared<KeptMemory>();
    plan.memory = owner_.save_memory;
    attempt([&] {
      job = std::make_unique<SaveJob>(std::move(plan), std::move(slices_), std::move(archives_));
      if (!beside) return job->write_part();
      if (owner_.save_image == nullptr) owner_.save_image = std::make_shared<ShardImage>();
      job->take_snapshot(owner_.save_image, at::get_num_threads());
      job->start();
    });
    agree(job.get());  // so that no rank waits in vain for what another could not write
    if (beside) {
      owner_.running_save = std::move(job);
      owner_.running_save_name = what_;
      owner_.running_save_dir = parent_;
      owner_.running_save_tag = name_;
      owner_.running_save_reported = false;
      return;
    }
    attempt([&] { job->commit(); });
  }

  /// Whether a copy of what is written fits into memory, on every rank. Collective.
  [[nodiscard]] bool has_room() const {
    int64_t bytes = owner_.save_image == nullptr ? 0 : -owner_.save_image->capacity();
    for (const SavedSlice& slice : slices_) bytes += slice.numel * size_of(slice.dtype);
    for (const SavedArchive& archive : archives_) {
      for (const ZipMember& member : archive.members) bytes += member.bytes();
    }
    const int64_t here = std::clamp<int64_t>(environment_int("LOCAL_WORLD_SIZE").value_or(ranks_), 1, ranks_);
    const int64_t lacks = bytes > process_memory_facts().available_bytes / 2 / here ? 1 : 0;
    const bool fits = all_reduce_values(owner_.world, owner_.device(), {lacks}, ReduceOp::kMax, what_).front() == 0;
    if (!fits && rank_ == 0) owner_.log.warning("checkpoint.async_save: memory has no room for a copy of the state");
    return fits;
  }

  [[nodiscard]] std::string info() const {
    const double now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    const Json info = {{"saved_at", now},
                       {"global_steps", owner_.global_steps},
                       {"global_samples", owner_.global_samples},
                       {"world", ranks_},
                       {"stage", number_in_files(zero_)}};
    return info.dump();
  }

  // --- the native format
  void write_native() {
    const bool trains = !owner_.optimizer.groups.empty();
    slices_ = native_slices(*owner_.engine, owner_.optimizer, owner_.params, owner_.world, owner_.device());
    PyDocument document;
    PyNode* common = document.dict();
    document.root = common;
    add_counters(document, common);
    common->set("shared_params", shared_params(document));
    common->set("optimizer", trains ? PyValue(native_optimizer_state(document, view())) : PyValue());
    for (const auto& [key, value] : options_.client_state) common->set(key, from_client(value));
    if (rank_ == 0) write(kNativeCommon, document);
  }

  void write_random_state() {
    PyDocument document;
    document.root = describe_random_state(document);
    write(native_rank_file(rank_), document);
  }

  void write(const std::string& name, const PyDocument& document) {
    attempt([&] { archives_.push_back({name, torch_file_members(document)}); });
  }

  void check_client_state() const {
    for (const auto& [key, value] : options_.client_state) {
      DS_CHECK_AS(ConfigError,
                  std::find(kModelFileEntries.begin(), kModelFileEntries.end(), key) == kModelFileEntries.end(),
                  "client_state contains the reserved checkpoint key \"{}\": rename it", key);
    }
  }

  void check_tag(const std::string& tag) const {
    if (owner_.config->checkpoint.tag_validation == TagValidation::kIgnore || ranks_ == 1) return;
    const auto digest = static_cast<int64_t>(fnv1a(tag) >> 2);
    const auto extremes =
        all_reduce_values(owner_.world, owner_.device(), {digest, -digest}, ReduceOp::kMax, "checkpoint tag");
    if (extremes[0] == -extremes[1]) return;
    DS_CHECK_AS(ConfigError, owner_.config->checkpoint.tag_validation != TagValidation::kFail,
                "rank {} saves under the tag \"{}\", other ranks under another: pass the same tag on all ranks", rank_,
                tag);
    owner_.log.warning("rank {} saves under the tag \"{}\", other ranks under another", rank_, tag);
  }

  // --- model file
  void write_model_file(bool trains) {
    PyDocument document;
    PyNode* state = document.dict();
    document.root = state;
    const bool sharded_states = trains && form_ != StateFileForm::kWhole;
    const bool frozen = files_list_frozen(zero_);
    state->set("module", module_state(document));
    state->set("buffer_names", buffer_names(document));
    state->set("optimizer", trains && !sharded_states ? PyValue(whole_optimizer_state(document, view())) : PyValue());
    state->set("param_shapes", sharded_states ? PyValue(param_shapes(document)) : PyValue());
    state->set("frozen_param_shapes", frozen ? PyValue(frozen_params(document, /*values=*/false)) : PyValue());
    state->set("shared_params", sharded_states ? PyValue(shared_params(document)) : PyValue());
    state->set("frozen_param_fragments", frozen ? PyValue(frozen_params(document, /*values=*/true)) : PyValue());
    add_counters(document, state);
    for (const auto& [key, value] : options_.client_state) state->set(key, from_client(value));
    if (form_ == StateFileForm::kPerParameter) {
      write(model_piece_file("", rank_).substr(1), document);
    } else if (rank_ == 0) {
      write(whole_model_file("").substr(1), document);
    }
  }

  /// What every layout has of a run.
  void add_counters(PyDocument& document, PyNode* state) const {
    state->set("lr_scheduler", schedule_state(document));
    state->set("data_sampler", PyValue());
    state->set("random_ltd", PyValue());
    state->set("skipped_steps", owner_.skipped_steps);
    state->set("global_steps", owner_.global_steps);
    state->set("global_samples", owner_.global_samples);
    state->set("dp_world_size", ranks_);
    state->set("mp_world_size", 1);
    PyNode* dimensions = document.dict();
    dimensions->set("pp_degree", 1);
    dimensions->set("tp_degree", 1);
    state->set("checkpoint_parallel_dimensions", dimensions);
    state->set("ds_config", user_config(document));
    state->set("ds_version", DEEPSCALE_VERSION);
  }

  PyValue user_config(PyDocument& document) const {
    return from_json(config::parse_json_text(owner_.config.source_json()), document);
  }

  PyValue schedule_state(PyDocument& document) const {
    if (owner_.schedule == nullptr) return {};
    PyNode* state = document.dict();
    state->set("last_batch_iteration", owner_.schedule->last_batch_iteration());
    return state;
  }

  /// Names in the order of Python's state_dict(). Values of parameters that are stored in pieces are left empty.
  PyNode* module_state(PyDocument& document) {
    PyNode* state = document.ordered_dict();
    std::map<int, PyNode*> made;
    for (const auto& entry : owner_.params.entries) {
      if (entry.param < 0) {
        state->set(entry.name, add_tensor(document, entry.buffer));
        continue;
      }
      PyNode*& node = made[entry.param];
      if (node == nullptr) {
        const at::Tensor& tensor = owner_.params.params[entry.param].tensor;
        const bool in_pieces = form_ == StateFileForm::kPerParameter;
        node = add_tensor(document, in_pieces ? at::empty({0}, at::TensorOptions(tensor.scalar_type())) : tensor);
      }
      state->set(entry.name, node);
    }
    return state;
  }

  PyNode* buffer_names(PyDocument& document) const {
    PyNode* names = document.list();
    for (const auto& entry : owner_.params.entries) {
      if (entry.param < 0) names->add(entry.name);
    }
    return names;
  }

  PyNode* param_shapes(PyDocument& document) const {
    PyNode* list = document.list();
    for (const auto& group : view().groups) {
      PyNode* shapes = document.ordered_dict();
      for (const int p : group) shapes->set(owner_.params.params[p].name, document.size(owner_.params.params[p].shape));
      list->add(shapes);
    }
    return list;
  }

  PyNode* shared_params(PyDocument& document) const {
    PyNode* shared = document.dict();
    for (const auto& [alias, name] : owner_.params.aliases) shared->set(alias, name);
    return shared;
  }

  /// Shapes or values of parameters that no group trains; with sharded parameters this rank's equal piece, padded.
  PyNode* frozen_params(PyDocument& document, bool values) const {
    PyNode* state = document.ordered_dict();
    for (size_t p = 0; p < owner_.params.params.size(); ++p) {
      if (optimizer_group_of(owner_.optimizer, static_cast<int>(p)) >= 0) continue;
      const auto& param = owner_.params.params[p];
      if (!values) {
        state->set(param.name, document.size(param.shape));
      } else if (form_ != StateFileForm::kPerParameter) {
        state->set(param.name, add_tensor(document, param.tensor));
      } else {
        state->set(param.name, add_tensor(document, frozen_piece(static_cast<int>(p), param.tensor.scalar_type())));
      }
    }
    return state;
  }

  [[nodiscard]] at::Tensor frozen_piece(int index, at::ScalarType dtype) const {
    const at::Tensor whole = owner_.engine->read_full(index, "fp32")->reshape({-1}).to(at::kCPU, dtype);
    const int64_t size = (whole.numel() + ranks_ - 1) / ranks_;
    const at::Tensor piece = at::zeros({size}, whole.options());
    const int64_t begin = std::min(rank_ * size, whole.numel());
    const int64_t length = std::min(size, whole.numel() - begin);
    piece.narrow(0, 0, length).copy_(whole.narrow(0, begin, length));
    return piece;
  }

  // --- optimizer file
  void write_optimizer_file() {
    PyDocument document;
    PyNode* file = document.dict();
    document.root = file;
    file->set("optimizer_state_dict", rank_optimizer_state(document, view()));
    file->set("ds_config", user_config(document));
    file->set("ds_version", DEEPSCALE_VERSION);
    write(optimizer_file("", rank_, owner_.config->bf16.enabled).substr(1), document);
  }

  [[nodiscard]] TrainingView view() const {
    return {*owner_.engine,
            owner_.optimizer,
            owner_.params,
            owner_.config,
            rank_,
            ranks_,
            file_groups(owner_.optimizer, owner_.params, zero_, ranks_)};
  }

  Impl& owner_;
  const ZeroOptions& zero_;
  StateFileForm form_;
  std::string directory_, parent_, name_, what_;
  const SaveOptions& options_;
  int ranks_, rank_;
  std::vector<SavedArchive> archives_;  ///< of this rank
  std::vector<SavedSlice> slices_;
  std::exception_ptr problem_;
};

void ModuleEngine::Impl::save(const std::string& directory, const SaveOptions& options) {
  DS_CHECK_AS(ConfigError, !directory.empty(), "save_checkpoint() needs a directory, got an empty name");
  const c10::NoGradGuard no_grad;
  wait_for_save();
  Saver(*this, directory, options).run();
}

void ModuleEngine::Impl::wait_for_save() {
  const std::unique_ptr<SaveJob> job = std::move(running_save);
  if (job == nullptr) return;  // a save is under way on all ranks or on none
  const auto together = [&](const auto& work) {
    std::exception_ptr problem;
    try {
      work();
    } catch (...) {
      problem = std::current_exception();
    }
    agree(problem, running_save_name);
  };
  try {
    // First their own parts: the rank that commits would wait for one that will not come.
    together([&] { job->wait_for_part(); });
    together([&] { job->wait(); });
  } catch (...) {
    job->cancel();
    remove_failed_save(running_save_dir, running_save_tag);
    throw;
  }
}

void ModuleEngine::Impl::remove_failed_save(const std::string& save_dir, const std::string& tag) const {
  try {
    world.barrier("a save that failed");
    if (world.rank() == 0) abandon_save(save_dir, tag);
  } catch (const Error&) {
    // The folder has a dot in front; the next save of the tag removes it.
  }
}

void ModuleEngine::Impl::report_save() {
  if (running_save == nullptr || running_save_reported || !running_save->done()) return;
  running_save_reported = true;
  try {
    running_save->wait();
  } catch (const std::exception& error) {
    log.error("{}: the checkpoint was not saved: {}", running_save_name, error.what());
  }
}

void ModuleEngine::Impl::save_weights(const std::string& path) {
  const c10::NoGradGuard no_grad;
  std::vector<at::Tensor> kept;
  std::vector<SafetensorsItem> items;
  for (size_t p = 0; p < params.params.size(); ++p) {
    const at::Tensor value = engine->read_full(static_cast<int>(p), "fp32")->to(at::kCPU, at::kFloat).contiguous();
    if (world.rank() != 0) continue;
    kept.push_back(value);
    items.push_back({params.params[p].name, DType::kFloat32, params.params[p].shape, value.const_data_ptr()});
  }
  if (world.rank() != 0) return;
  for (const auto& entry : params.entries) {
    if (entry.param >= 0) continue;
    kept.push_back(entry.buffer.detach().to(at::kCPU).contiguous());
    items.push_back(
        {entry.name, to_dtype(kept.back().scalar_type()), kept.back().sizes().vec(), kept.back().const_data_ptr()});
  }
  write_safetensors(path, items, {{"format", "pt"}});
}

}  // namespace deepscale
