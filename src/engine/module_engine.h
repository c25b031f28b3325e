// The inside of the public ModuleEngine: an Engine over a module's parameters, the optimizer's groups, a schedule, and
// the counters of training.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"
#include "checkpoint/py_value.h"
#include "checkpoint/save_job.h"
#include "deepscale/training.h"
#include "engine/engine.h"
#include "engine/lr_schedule.h"
#include "engine/model_params.h"
#include "engine/optimizer_config.h"

namespace deepscale {

class ModuleEngine::Impl {
 public:
  /// Collective.
  Impl(std::shared_ptr<torch::nn::Module> model, Config config, const InitializeOptions& options, Communicator world);
  ~Impl();
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  at::Tensor backward(const at::Tensor& loss);
  void step();
  [[nodiscard]] bool at_boundary() const;
  [[nodiscard]] int parameter_index(const std::string& name) const;
  [[nodiscard]] std::vector<GroupHyper> hyper() const;
  void apply_rates(const std::vector<GroupRate>& rates);
  [[nodiscard]] std::string description() const;
  /// All ranks go on, or all throw: the rank with a problem its own, the others one that names it. Collective.
  void agree(const std::exception_ptr& problem, const std::string& what) const;

  // module_checkpoint_save.cpp, module_checkpoint_load.cpp. Collective.
  void save(const std::string& directory, const SaveOptions& options);
  void save_weights(const std::string& path);
  std::optional<LoadedCheckpoint> load(const std::string& directory, const LoadOptions& options);
  /// Until what save() began beside training is valid; throws what went wrong, on all ranks.
  void wait_for_save();
  /// Logs once that what save() began has failed. Waits for nothing.
  void report_save();
  /// What a save that failed left goes when nobody writes into it any more. Nothing of this may hide why it failed.
  void remove_failed_save(const std::string& save_dir, const std::string& tag) const;

  std::shared_ptr<torch::nn::Module> model;
  Config config;
  Communicator world;
  Logger log;
  ModelParams params;
  ConfiguredOptimizer optimizer;  ///< members are positions in params.params
  PlanGroups groups;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<LrSchedule> schedule;   ///< null: rates stay
  std::unique_ptr<SaveJob> running_save;  ///< beside training
  std::string running_save_name;
  std::string running_save_dir, running_save_tag;
  bool running_save_reported = false;
  std::shared_ptr<ShardImage> save_image;   ///< memory for the copy that is written beside training
  std::shared_ptr<KeptMemory> save_memory;  ///< what a save that training waits for goes through

  int64_t global_steps = 0;
  int64_t global_samples = 0;
  int64_t micro_steps = 0;
  int64_t skipped_steps = 0;
  bool step_applied = false;
  std::optional<bool> forced_boundary;

 private:
  [[nodiscard]] at::Device device() const;
  [[nodiscard]] std::optional<std::string> latest_tag(const std::string& directory) const;
  [[nodiscard]] std::vector<std::string> older_tags(const std::string& directory, const std::string& latest) const;
  [[nodiscard]] std::string text_of_rank_0(const std::string& text, const char* what) const;

  class GatherHook;
  class Saver;
  class Loader;  // DeepSpeed's layout
  class NativeLoader;

  using ReadNumber = std::function<double(const PyValue& value, const char* what)>;
  LoadedCheckpoint load_tag(const std::string& folder, const LoadOptions& options);
  /// That of options.tag; an error says which other one could be taken.
  LoadedCheckpoint load_named(const std::string& directory, const LoadOptions& options);
  /// Whether the failure to load says on any rank that the checkpoint is of another model or optimizer. Collective.
  [[nodiscard]] bool is_misfit(const std::exception_ptr& failure) const;
  /// What may be loaded instead of `tag`, which failed: none when that fits another model. Collective; throws `failure`
  /// when the other ranks are not there to be asked.
  [[nodiscard]] std::vector<std::string> tags_instead(const std::string& directory, const std::string& tag,
                                                      const std::exception_ptr& failure) const;
  /// `tag`, or the newest other one that is intact.
  LoadedCheckpoint load_newest(const std::string& directory, const std::string& tag, const LoadOptions& options);
  LoadedCheckpoint load_files(const std::string& folder, const LoadOptions& options);
  void restore_settings(const std::vector<const PyValue*>& saved, const ReadNumber& number);
  void restore_scaler(const PyValue& state);
  LoadedCheckpoint restore_run(const std::string& folder, const PyValue& saved, const LoadOptions& options);

  void cast_buffers();
  void broadcast_buffers();
  void make_optimizer(const std::vector<ParameterGroup>& requested);
  void make_engine(const std::vector<AnyUnit>& units);
  void make_schedule();
  [[nodiscard]] std::vector<std::shared_ptr<ParamUnit>> shard_parameters();
  void attach_units(const std::vector<AnyUnit>& units, const std::vector<std::shared_ptr<ParamUnit>>& owners);

  /// Units that call this engine's hooks; they stop before the engine ends, also when building it fails half way.
  struct Attachments {
    ~Attachments() {
      for (const AnyUnit& unit : units) unit.attach(nullptr);
    }
    std::vector<AnyUnit> units;
  };

  bool in_step_ = false;
  Attachments attached_;  // after the engine, so that it goes first
};

}  // namespace deepscale
