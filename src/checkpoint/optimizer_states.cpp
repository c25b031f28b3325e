#include "checkpoint/optimizer_states.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>

#include "base/checked_math.h"
#include "base/error.h"
#include "checkpoint/elements.h"

namespace deepscale {
namespace {

int64_t checked_numel(const std::vector<int64_t>& shape) {
  int64_t numel = 1;
  for (const int64_t size : shape) {
    const auto product = checked_product(numel, size);
    DS_CHECK_AS(CheckpointError, product && *product < int64_t{1} << 56, "impossible shape [{}]",
                fmt::join(shape, ", "));
    numel = *product;
  }
  return numel;
}

}  // namespace

OptimizerStates::OptimizerStates(std::vector<const PyValue*> states, std::vector<std::shared_ptr<TorchArchive>> files,
                                 std::vector<std::vector<StoredParam>> groups)
    : states_(std::move(states)), files_(std::move(files)), groups_(std::move(groups)) {
  const PyValue& first = *states_.front();
  StateLayoutKind kind = StateLayoutKind::kUnpadded;
  if (first.find("fp32_flat_groups") != nullptr) {
    masters_key_ = "fp32_flat_groups";
    kind = StateLayoutKind::kPerParameter;
  } else if (first.find("single_partition_of_fp32_groups") != nullptr) {
    masters_key_ = "single_partition_of_fp32_groups";
    kind = StateLayoutKind::kPartitioned;
  } else if (first.find("fp32_groups_flat") != nullptr) {
    masters_key_ = "fp32_groups_flat";
  } else if (first.find("fp32_groups") != nullptr) {
    masters_key_ = "fp32_groups";
  }
  flat_groups_ = !masters_key_.empty() && masters_key_ != "fp32_groups";
  DS_CHECK_AS(CheckpointError, flat_groups_ || base(0).find("state") != nullptr,
              "{} has optimizer states in a form that is not known", files_.front()->path());
  if (kind != StateLayoutKind::kUnpadded) check_counts();
  for (size_t g = 0; g < groups_.size(); ++g) {
    std::vector<int64_t> numels;
    for (size_t p = 0; p < groups_[g].size(); ++p) {
      places_[groups_[g][p].name] = {static_cast<int>(g), static_cast<int>(p)};
      numels.push_back(checked_numel(groups_[g][p].shape));
    }
    const int ranks = kind == StateLayoutKind::kUnpadded ? 1 : static_cast<int>(states_.size());
    layouts_.emplace_back(kind, std::move(numels), ranks);
  }
}

void OptimizerStates::check_counts() const {
  for (size_t r = 0; r < states_.size(); ++r) {
    const std::string& path = files_[r]->path();
    const PyValue* count = states_[r]->find("partition_count");
    std::vector<PyValue> counts;
    if (count != nullptr) counts = count->is_sequence() ? count->node()->items : std::vector<PyValue>{*count};
    for (const PyValue& each : counts) {
      const int64_t ranks = each.as_int("partition_count");
      DS_CHECK_AS(CheckpointError, ranks == static_cast<int64_t>(states_.size()),
                  "{} belongs to a checkpoint of {} ranks, but {} optimizer files were found: files are missing, or of "
                  "another run",
                  path, ranks, states_.size());
    }
    const PyValue* alignment = states_[r]->find("param_alignment_paddings");
    if (alignment == nullptr || !alignment->is_sequence()) continue;
    for (const PyValue& group : alignment->node()->items) {
      for (const PyValue& padding : group.as_items("param_alignment_paddings")) {
        DS_CHECK_AS(CheckpointError, padding.as_int("param_alignment_paddings") == 0,
                    "{} was saved with zero_optimization.parameter_alignment, which is not supported here", path);
      }
    }
  }
}

const PyValue& OptimizerStates::state_of_rank(int rank) const {
  return *states_[std::min(static_cast<size_t>(rank), states_.size() - 1)];
}

const StoredParam* OptimizerStates::find(const std::string& name) const {
  const auto found = places_.find(name);
  return found == places_.end() ? nullptr : &groups_[found->second.group][found->second.position];
}

/// The torch optimizer's state dictionary, or its older list form.
const PyValue& OptimizerStates::base(int rank) const {
  const PyValue& state = *states_[rank];
  if (const PyValue* found = state.find("base_optimizer_state")) return *found;
  if (const PyValue* found = state.find("optimizer_state_dict")) return *found;
  return state;
}

std::vector<const PyValue*> OptimizerStates::param_groups() const {
  std::vector<const PyValue*> groups;
  const PyValue* listed = base(0).find("param_groups");
  if (listed == nullptr || !listed->is_sequence()) return groups;
  for (const PyValue& group : listed->node()->items) groups.push_back(&group);
  return groups;
}

const PyValue* OptimizerStates::group_state(int rank, int number) const {
  const PyValue& held = base(rank);
  if (held.is_sequence()) {  // without padding, one entry per group
    const auto& items = held.node()->items;
    return number < static_cast<int>(items.size()) ? &items[number] : nullptr;
  }
  const PyValue* states = held.find("state");
  const PyValue* groups = held.find("param_groups");
  if (states == nullptr || groups == nullptr || !groups->is_sequence()) return nullptr;
  std::vector<int64_t> ids;
  for (const PyValue& group : groups->node()->items) {
    for (const PyValue& id : group.at("params").as_items("params")) ids.push_back(id.as_int("params"));
  }
  return number < static_cast<int>(ids.size()) ? states->find(ids[number]) : nullptr;
}

const PyTensor* OptimizerStates::flat(int rank, int group, const std::string& key) const {
  if (key == "fp32") {
    const auto& masters = states_[rank]->at(masters_key_).as_items(masters_key_);
    DS_CHECK_AS(CheckpointError, group < static_cast<int>(masters.size()), "{}: {} has {} groups, {} are needed",
                files_[rank]->path(), masters_key_, masters.size(), groups_.size());
    return &masters[group].as_tensor(masters_key_);
  }
  const PyValue* state = group_state(rank, group);
  const PyValue* found = state == nullptr ? nullptr : state->find(key);
  return found != nullptr && found->is(PyKind::kTensor) ? &found->node()->tensor : nullptr;
}

/// Number of a parameter in files with states by parameter: as its group lists it. -1: there are no states at all.
int64_t OptimizerStates::parameter_number(const Place& place) const {
  const auto groups = param_groups();
  DS_CHECK_AS(CheckpointError, place.group < static_cast<int>(groups.size()),
              "{} has {} parameter groups, the optimizer more: build it with the same groups", files_.front()->path(),
              groups.size());
  std::vector<int64_t> ids;
  for (const PyValue& id : groups[place.group]->at("params").as_items("params")) ids.push_back(id.as_int("params"));
  if (ids.size() != groups_[place.group].size()) {
    // Python's optimizer also lists parameters that are frozen, which have no state.
    const PyValue& states = base(0).at("state");
    if (states.is_dict() && states.node()->items.empty()) return -1;
    std::erase_if(ids, [&](int64_t id) { return states.find(id) == nullptr; });
  }
  DS_CHECK_AS(CheckpointError, ids.size() == groups_[place.group].size(),
              "{}: group {} has {} parameters, the optimizer's has {}: it is of another model or other groups",
              files_.front()->path(), place.group, ids.size(), groups_[place.group].size());
  return ids[place.position];
}

bool OptimizerStates::counts_fit() const {
  if (flat_groups_) return false;
  const auto listed = param_groups();
  if (listed.size() != groups_.size()) return false;
  for (size_t g = 0; g < groups_.size(); ++g) {
    if (listed[g]->at("params").as_items("params").size() != groups_[g].size()) return false;
  }
  return true;
}

const PyTensor* OptimizerStates::whole(const std::string& name, const std::string& key) const {
  const Place& place = places_.at(name);
  if (key == "fp32") {
    if (masters_key_.empty()) return nullptr;
    const auto& groups = states_[0]->at(masters_key_).as_items(masters_key_);
    DS_CHECK_AS(CheckpointError, place.group < static_cast<int>(groups.size()), "{} has too few groups", masters_key_);
    const auto& group = groups[place.group].as_items(masters_key_);
    DS_CHECK_AS(CheckpointError, place.position < static_cast<int>(group.size()), "{} has too few parameters",
                masters_key_);
    return &group[place.position].as_tensor(masters_key_);
  }
  const PyValue* state = base(0).at("state").find(parameter_number(place));
  const PyValue* found = state == nullptr ? nullptr : state->find(key);
  return found != nullptr && found->is(PyKind::kTensor) ? &found->node()->tensor : nullptr;
}

void OptimizerStates::check(const std::string& name, const std::string& key) const {
  const Place& place = places_.at(name);
  const int64_t numel = checked_numel(groups_[place.group][place.position].shape);
  if (!flat_groups_) {
    const PyTensor* found = whole(name, key);
    DS_CHECK_AS(CheckpointError, found == nullptr || found->numel() == numel,
                "{}: {} of {} has {} elements, {} are expected", files_.front()->path(), key, name, found->numel(),
                numel);
    return;
  }
  for (const StatePiece& piece : layouts_[place.group].pieces(place.position)) {
    const PyTensor* found = flat(piece.rank, place.group, key);
    DS_CHECK_AS(
        CheckpointError, found == nullptr || found->numel() >= piece.start + piece.length,
        "{}: {} of parameter group {} has {} elements, but {} needs {}: the file is of another model or cut off",
        files_[piece.rank]->path(), key, place.group, found->numel(), name, piece.start + piece.length);
  }
}

/// Elements of one stored tensor, whatever its dtype.
void OptimizerStates::read_fp32(int rank, const PyTensor& tensor, int64_t begin, int64_t length,
                                float* destination) const {
  if (tensor.dtype == DType::kFloat32) return files_[rank]->read(tensor, begin, length, destination);
  std::vector<char> stored(static_cast<size_t>(length * size_of(tensor.dtype)));
  files_[rank]->read(tensor, begin, length, stored.data());
  to_fp32(stored.data(), tensor.dtype, length, destination);
}

bool OptimizerStates::read(const std::string& name, const std::string& key, int64_t offset, int64_t length,
                           float* destination) const {
  const Place& place = places_.at(name);
  if (!flat_groups_) {
    const PyTensor* found = whole(name, key);
    if (found == nullptr) return false;
    read_fp32(0, *found, offset, length, destination);
    return true;
  }
  for (const StatePiece& piece : layouts_[place.group].pieces(place.position, offset, length)) {
    const PyTensor* found = flat(piece.rank, place.group, key);
    if (found == nullptr) return false;
    read_fp32(piece.rank, *found, piece.start, piece.length, destination + (piece.offset - offset));
  }
  return true;
}

std::vector<std::string> OptimizerStates::state_keys(const std::string& name) const {
  const Place& place = places_.at(name);
  const PyValue* const state =
      flat_groups_ ? group_state(0, place.group) : base(0).at("state").find(parameter_number(place));
  std::vector<std::string> keys;
  if (state == nullptr || !state->is_dict()) return keys;
  // A parameter without dimensions has such states.
  const bool scalar = !flat_groups_ && groups_[place.group][place.position].shape.empty();
  for (const auto& [key, value] : state->as_entries("an optimizer's state")) {
    if (!value->is(PyKind::kTensor) || key == "step") continue;
    if (scalar || !value->node()->tensor.sizes.empty()) keys.push_back(key);
  }
  std::sort(keys.begin(), keys.end());
  return keys;
}

double OptimizerStates::number(const PyValue& value, std::string_view what) const {
  if (!value.is(PyKind::kTensor)) return value.as_double(what);
  DS_CHECK_AS(CheckpointError, value.node()->tensor.numel() == 1, "{} is no single number", what);
  const PyTensor& tensor = value.node()->tensor;
  std::array<char, 8> bytes{};
  files_.front()->read(tensor, 0, 1, bytes.data());
  double number = 0.0;
  with_elements(bytes.data(), tensor.dtype, [&](auto element) { number = static_cast<double>(element(0)); });
  return number;
}

std::optional<int64_t> OptimizerStates::step() const {
  std::optional<int64_t> latest;
  const auto consider = [&](const PyValue* state) {
    const PyValue* found = state == nullptr ? nullptr : state->find("step");
    if (found == nullptr) return;
    // Some optimizers count only on the last parameter of a group.
    const auto step = static_cast<int64_t>(number(*found, "step"));
    latest = std::max(latest.value_or(step), step);
  };
  if (const PyValue* stored = states_[0]->find("base_optimizer_state_step")) latest = stored->as_int("step");
  const PyValue& held = base(0);
  if (held.is_sequence()) {
    for (const PyValue& group : held.node()->items) consider(&group);
  } else if (const PyValue* states = held.find("state"); states != nullptr && states->is_dict()) {
    for (size_t i = 1; i < states->node()->items.size(); i += 2) consider(&states->node()->items[i]);
  }
  for (const PyValue* group : param_groups()) consider(group);
  return latest;
}

std::vector<std::vector<StoredParam>> stored_params(const PyValue& param_shapes) {
  std::vector<std::vector<StoredParam>> groups;
  for (const PyValue& group : param_shapes.as_items("param_shapes")) {
    groups.emplace_back();
    for (const auto& [name, shape] : group.as_entries("param_shapes")) {
      groups.back().push_back({name, shape->as_shape("param_shapes")});
      (void)checked_numel(groups.back().back().shape);
    }
  }
  return groups;
}

}  // namespace deepscale
