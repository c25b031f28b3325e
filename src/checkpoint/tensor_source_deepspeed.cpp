// Checkpoints in DeepSpeed's layout, and universal ones, as tensors by name.
#include <algorithm>
#include <charconv>
#include <functional>
#include <set>

#include "base/error.h"
#include "base/text.h"
#include "checkpoint/optimizer_states.h"
#include "checkpoint/tensor_source.h"
#include "checkpoint/torch_archive.h"
#include "platform/files.h"

namespace deepscale {
namespace {

constexpr std::string_view kModelEnding = "_mp_rank_00_model_states.pt";
constexpr std::string_view kOptimizerEnding = "_mp_rank_00_optim_states.pt";
constexpr char kWholeModel[] = "mp_rank_00_model_states.pt";

using Archive = std::shared_ptr<TorchArchive>;
/// Elements [offset, offset + numel) to destination.
using Read = std::function<void(int64_t offset, int64_t numel, void* destination)>;

Archive open_archive(const std::string& path) {
  return std::make_shared<TorchArchive>(TorchArchive::open(path));
}

void check_layout(const std::string& folder) {
  for (const std::string& name : list_directory(folder)) {
    const bool other = name.starts_with("layer_") || name.starts_with("expp_rank_") ||
                       (name.find("mp_rank_") != std::string::npos && name.find("mp_rank_00_") == std::string::npos);
    DS_CHECK_AS(CheckpointError, !other || !name.ends_with("_states.pt"),
                "checkpoint {} holds {}: checkpoints of pipelines, mixtures of experts and tensor parallelism are not "
                "read here",
                folder, name);
  }
}

/// Files of ranks, by rank. Throws CheckpointError when one in between is missing.
std::vector<std::string> rank_files(const std::string& folder, std::string_view ending) {
  constexpr std::string_view kMarker = "zero_pp_rank_";
  std::map<int, std::string> found;
  for (const std::string& name : list_directory(folder)) {
    const size_t marker = name.find(kMarker);
    if (marker == std::string::npos || !name.ends_with(ending)) continue;
    int rank = -1;
    const char* const end = name.data() + name.size() - ending.size();
    const auto [stop, error] = std::from_chars(name.data() + marker + kMarker.size(), end, rank);
    if (error == std::errc() && stop == end && rank >= 0) found[rank] = folder + "/" + name;
  }
  std::vector<std::string> paths;
  for (const auto& [rank, path] : found) {
    DS_CHECK_AS(CheckpointError, rank == static_cast<int>(paths.size()),
                "checkpoint {}: the file of rank {} is missing beside {}: the checkpoint is not complete", folder,
                paths.size(), path);
    paths.push_back(path);
  }
  return paths;
}

/// Tensors each of which has a function that reads it.
class ReadersSource : public TensorSource {
 public:
  void read(const std::vector<SourceRange>& ranges) override {
    for (const SourceRange& range : ranges) readers_[range.tensor](range.offset, range.numel, range.destination);
  }

 protected:
  using TensorSource::TensorSource;

  void add_reader(const std::string& name, DType dtype, const std::vector<int64_t>& shape, int64_t pieces, Read read) {
    add(name, dtype, shape, pieces);
    readers_.push_back(std::move(read));
  }
  void add_stored(const std::string& name, const Archive& archive, const PyTensor& tensor) {
    add_reader(name, tensor.dtype, tensor.sizes, 1, [archive, &tensor](int64_t offset, int64_t numel, void* to) {
      archive->read(tensor, offset, numel, to);
    });
  }
  void finish() {
    std::vector<Read> sorted;
    for (const int place : sort_tensors()) sorted.push_back(std::move(readers_[place]));
    readers_ = std::move(sorted);
  }

 private:
  std::vector<Read> readers_;
};

class DeepSpeedSource : public ReadersSource {
 public:
  explicit DeepSpeedSource(const std::string& folder) : ReadersSource(CheckpointKind::kDeepSpeed), folder_(folder) {
    check_layout(folder);
    open_models();
    open_states();
    add_trained();
    add_others();
    if (in_pieces_) add_frozen_pieces();
    finish();
  }

 private:
  [[nodiscard]] const PyValue& first() const { return models_.front()->root(); }

  void open_models() {
    const auto pieces = rank_files(folder_, kModelEnding);
    in_pieces_ = !pieces.empty() && !file_size(folder_ + "/" + kWholeModel);
    if (in_pieces_) {
      for (const std::string& path : pieces) models_.push_back(open_archive(path));
    } else {
      models_.push_back(open_archive(folder_ + "/" + kWholeModel));
    }
    const PyValue* const module = first().find("module");
    DS_CHECK_AS(CheckpointError, module != nullptr && module->is_dict(),
                "{} has no entry \"module\": it is not a model-state file", models_.front()->path());
    take_aliases(first());
  }

  void open_states() {
    const PyValue* const shapes = first().find("param_shapes");
    const PyValue* const in_model = first().find("optimizer");
    const bool whole = in_model != nullptr && !in_model->is_none();
    const bool named = shapes != nullptr && !shapes->is_none();
    if (whole) {
      states_ = std::make_shared<OptimizerStates>(
          std::vector<const PyValue*>{in_model}, std::vector<Archive>{models_.front()},
          named ? stored_params(*shapes) : std::vector<std::vector<StoredParam>>{all_parameters()});
      if (!named && !states_->counts_fit()) {
        notes_.emplace_back("the files do not name the parameters of the optimizer's states: not listed");
        states_ = nullptr;
      }
      return;
    }
    if (!named) return;
    const auto paths = rank_files(folder_, kOptimizerEnding);
    if (paths.empty() && !in_pieces_) {
      notes_.emplace_back("there are no optimizer files (*_optim_states.pt): only the model's values are listed");
      return;
    }
    DS_CHECK_AS(CheckpointError, !paths.empty(),
                "checkpoint {} has no optimizer files (*_optim_states.pt), which hold the values of its parameters",
                folder_);
    std::vector<const PyValue*> states;
    std::vector<Archive> files;
    for (const std::string& path : paths) {
      files.push_back(open_archive(path));
      const PyValue* const state = files.back()->root().find("optimizer_state_dict");
      DS_CHECK_AS(CheckpointError, state != nullptr,
                  "{} has no entry \"optimizer_state_dict\": it is not an optimizer-state file", path);
      states.push_back(state);
    }
    if (const PyValue* const ranks = first().find("dp_world_size")) {
      DS_CHECK_AS(CheckpointError, ranks->as_int("dp_world_size") == static_cast<int64_t>(files.size()),
                  "checkpoint {} was saved by {} ranks, but has {} optimizer files: files are missing", folder_,
                  ranks->as_int("dp_world_size"), files.size());
    }
    states_ = std::make_shared<OptimizerStates>(std::move(states), std::move(files), stored_params(*shapes));
  }

  /// What an optimizer of all parameters trains, in the order of the model.
  [[nodiscard]] std::vector<StoredParam> all_parameters() const {
    std::set<std::string> skipped;
    if (const PyValue* const names = first().find("buffer_names"); names != nullptr && names->is_sequence()) {
      for (const PyValue& name : names->node()->items) skipped.insert(name.as_string("buffer_names"));
    }
    std::set<std::pair<std::string, int64_t>> storages;  // two names of one parameter share it
    std::vector<StoredParam> params;
    for (const auto& [name, value] : first().at("module").as_entries("module")) {
      if (!value->is(PyKind::kTensor) || skipped.contains(name)) continue;
      const PyTensor& tensor = value->node()->tensor;
      if (storages.insert({tensor.record, tensor.offset}).second) params.push_back({name, tensor.sizes});
    }
    return params;
  }

  /// Trained parameters: what the optimizer updates, and its states.
  void add_trained() {
    if (states_ == nullptr) return;
    for (const auto& group : states_->groups()) {
      for (const StoredParam& param : group) {
        trained_[param.name] = true;
        if (states_->has_masters()) {
          add_state("fp32", param);
        } else if (const PyValue* const value = first().at("module").find(param.name);
                   value != nullptr && value->is(PyKind::kTensor)) {
          add_stored("fp32/" + param.name, models_.front(), value->node()->tensor);
        }
        for (const std::string& key : states_->state_keys(param.name)) add_state(key, param);
      }
    }
  }

  void add_state(const std::string& key, const StoredParam& param) {
    states_->check(param.name, key);
    add_reader(key + "/" + param.name, DType::kFloat32, param.shape, 1,
               [states = states_, name = param.name, key, folder = folder_](int64_t offset, int64_t numel, void* to) {
                 const bool found = states->read(name, key, offset, numel, static_cast<float*>(to));
                 DS_CHECK_AS(CheckpointError, found, "checkpoint {}: a file lacks state {} of parameter {}", folder,
                             key, name);
               });
  }

  /// Buffers, and parameters that nothing trains and that are whole.
  void add_others() {
    for (const auto& [name, value] : first().at("module").as_entries("module")) {
      if (!value->is(PyKind::kTensor) || trained_.contains(name) || aliases_.contains(name)) continue;
      const PyTensor& tensor = value->node()->tensor;
      if (in_pieces_ && frozen_shape(name) != nullptr) continue;
      add_stored("module/" + name, models_.front(), tensor);
    }
  }

  [[nodiscard]] const PyValue* frozen_shape(const std::string& name) const {
    const PyValue* const shapes = first().find("frozen_param_shapes");
    return shapes == nullptr || !shapes->is_dict() ? nullptr : shapes->find(name);
  }

  /// Equal pieces by rank, padded.
  void add_frozen_pieces() {
    const PyValue* const shapes = first().find("frozen_param_shapes");
    if (shapes == nullptr || !shapes->is_dict()) return;
    for (const auto& [name, shape] : shapes->as_entries("frozen_param_shapes")) {
      std::vector<const PyTensor*> pieces;
      for (const Archive& model : models_) {
        pieces.push_back(&model->root().at("frozen_param_fragments").at(name).as_tensor(name));
        DS_CHECK_AS(CheckpointError,
                    pieces.back()->numel() == pieces.front()->numel() && pieces.back()->dtype == pieces.front()->dtype,
                    "{}: its piece of {} has {} elements, that of rank 0 {}", model->path(), name,
                    pieces.back()->numel(), pieces.front()->numel());
      }
      const auto sizes = shape->as_shape("frozen_param_shapes");
      add_reader("module/" + name, pieces.front()->dtype, sizes, static_cast<int64_t>(pieces.size()),
                 [models = models_, pieces](int64_t offset, int64_t numel, void* to) {
                   read_pieces(models, pieces, offset, numel, static_cast<char*>(to));
                 });
    }
  }

  static void read_pieces(const std::vector<Archive>& models, const std::vector<const PyTensor*>& pieces,
                          int64_t offset, int64_t numel, char* to) {
    const int64_t size = pieces.front()->numel(), element = size_of(pieces.front()->dtype);
    while (numel > 0) {
      const int64_t rank = size == 0 ? static_cast<int64_t>(pieces.size()) : offset / size;
      DS_CHECK_AS(CheckpointError, rank < static_cast<int64_t>(pieces.size()),
                  "{}: the pieces of a frozen parameter are too short", models.front()->path());
      const int64_t part = std::min(numel, (rank + 1) * size - offset);
      models[rank]->read(*pieces[rank], offset - rank * size, part, to);
      offset += part;
      numel -= part;
      to += part * element;
    }
  }

  std::string folder_;
  bool in_pieces_ = false;  ///< values of parameters are only in the optimizer files
  std::vector<Archive> models_;
  std::shared_ptr<OptimizerStates> states_;
  std::map<std::string, bool> trained_;
};

/// zero/<parameter>/<state>.pt; a file is opened for each read, so that any number of parameters can be had.
class UniversalSource : public ReadersSource {
 public:
  explicit UniversalSource(const std::string& folder) : ReadersSource(CheckpointKind::kUniversal) {
    std::map<std::string, bool> trained;
    add_folder(folder + "/zero", "", trained);
    for (const char* name : {kWholeModel, "zero_pp_rank_0_mp_rank_00_model_states.pt"}) {
      if (!file_size(folder + "/" + name)) continue;
      const Archive model = open_archive(folder + "/" + name);
      take_aliases(model->root());
      models_.push_back(model);
      for (const auto& [key, value] : model->root().at("module").as_entries("module")) {
        const bool listed = trained.contains(key) || aliases_.contains(key) || !value->is(PyKind::kTensor);
        if (!listed) add_stored("module/" + key, model, value->node()->tensor);
      }
      break;
    }
    finish();
  }

 private:
  /// Names of parameters may contain slashes.
  void add_folder(const std::string& folder, const std::string& param, std::map<std::string, bool>& trained) {
    for (const std::string& name : list_directory(folder)) {
      const std::string path = folder + "/" + name;
      if (is_directory(path)) {
        add_folder(path, param.empty() ? name : param + "/" + name, trained);
      } else if (!param.empty() && name.ends_with(".pt") && name != "step.pt") {
        add_file(path, name.substr(0, name.size() - 3) + "/" + param);
        trained[param] = true;
      }
    }
  }

  void add_file(const std::string& path, const std::string& name) {
    const auto archive = TorchArchive::open(path);
    const PyTensor* const tensor = tensor_in(archive);
    if (tensor == nullptr) return;
    add_reader(name, tensor->dtype, tensor->sizes, 1, [path](int64_t offset, int64_t numel, void* to) {
      auto opened = TorchArchive::open(path);
      const PyTensor* const now = tensor_in(opened);
      DS_CHECK_AS(CheckpointError, now != nullptr, "checkpoint file {} has changed", path);
      opened.read(*now, offset, numel, to);
    });
  }

  static const PyTensor* tensor_in(const TorchArchive& archive) {
    const PyValue* const param = archive.root().is_dict() ? archive.root().find("param") : &archive.root();
    return param != nullptr && param->is(PyKind::kTensor) ? &param->node()->tensor : nullptr;
  }

  std::vector<Archive> models_;
};

}  // namespace

std::unique_ptr<TensorSource> open_deepspeed_source(const std::string& folder) {
  return std::make_unique<DeepSpeedSource>(folder);
}

std::unique_ptr<TensorSource> open_universal_source(const std::string& folder) {
  return std::make_unique<UniversalSource>(folder);
}

}  // namespace deepscale
