// The optimizer states of all ranks of one checkpoint, readable by parameter and range, whatever layout wrote them. So
// a rank asks for the values of its own fragments and needs to know neither the stage nor the number of ranks of the
// run that saved them. Torch-free; optimizer_files.h gives at::Tensor.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/state_layout.h"
#include "checkpoint/torch_archive.h"

namespace deepscale {

struct StoredParam {
  std::string name;
  std::vector<int64_t> shape;
};

/// Threads: one at a time.
class OptimizerStates {
 public:
  /// One dictionary per rank and the file that holds it. groups: the parameters in the files' groups, in their order.
  /// Throws CheckpointError for dictionaries that are of no known layout, or of another number of ranks.
  OptimizerStates(std::vector<const PyValue*> states, std::vector<std::shared_ptr<TorchArchive>> files,
                  std::vector<std::vector<StoredParam>> groups);

  /// Null when the files do not know the parameter.
  [[nodiscard]] const StoredParam* find(const std::string& name) const;
  /// Throws CheckpointError when a stored tensor is too short for what it should hold. key: "fp32" or a state's name.
  void check(const std::string& name, const std::string& key) const;
  /// Elements [offset, offset + length) of a flattened parameter's state in fp32; false where the files have none.
  [[nodiscard]] bool read(const std::string& name, const std::string& key, int64_t offset, int64_t length,
                          float* destination) const;
  /// Names of the states with an element per element of the parameter, sorted.
  [[nodiscard]] std::vector<std::string> state_keys(const std::string& name) const;
  [[nodiscard]] const std::vector<std::vector<StoredParam>>& groups() const { return groups_; }

  /// Whether files with states by parameter have as many parameters in each group as were given.
  [[nodiscard]] bool counts_fit() const;
  /// Whether fp32 values of parameters are there beside the model's.
  [[nodiscard]] bool has_masters() const { return !masters_key_.empty(); }
  /// A number, also one that Python kept in a tensor.
  [[nodiscard]] double number(const PyValue& value, std::string_view what) const;
  [[nodiscard]] std::optional<int64_t> step() const;
  /// Hyper-parameters by group, as dictionaries; empty when the files have none.
  [[nodiscard]] std::vector<const PyValue*> param_groups() const;
  /// The dictionary of rank `rank` (of the last one when there are fewer).
  [[nodiscard]] const PyValue& state_of_rank(int rank) const;

 private:
  struct Place {
    int group = 0;
    int position = 0;
  };

  [[nodiscard]] const PyValue& base(int rank) const;
  [[nodiscard]] const PyValue* group_state(int rank, int number) const;
  [[nodiscard]] const PyTensor* flat(int rank, int group, const std::string& key) const;
  [[nodiscard]] const PyTensor* whole(const std::string& name, const std::string& key) const;
  [[nodiscard]] int64_t parameter_number(const Place& place) const;
  void check_counts() const;
  void read_fp32(int rank, const PyTensor& tensor, int64_t begin, int64_t length, float* destination) const;

  std::vector<const PyValue*> states_;
  std::vector<std::shared_ptr<TorchArchive>> files_;
  std::vector<std::vector<StoredParam>> groups_;
  std::map<std::string, Place> places_;
  std::vector<StateLayout> layouts_;
  std::string masters_key_;  ///< where fp32 values stand, "" when they are only in the model
  bool flat_groups_ = false;
};

/// param_shapes of a model-state file: groups of (name, shape).
std::vector<std::vector<StoredParam>> stored_params(const PyValue& param_shapes);

}  // namespace deepscale
