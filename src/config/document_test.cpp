#include "config/document.h"

#include <functional>

#include "config/sections.h"
#include "config/test_support.h"

namespace deepscale::config {
namespace {

// Every table that can be reached from the top level.
void visit(const Section& section, const std::string& path,
           const std::function<void(const Section&, const std::string&)>& f) {
  f(section, path);
  for (const Option& option : section.options) {
    if (option.nested != nullptr) visit(*option.nested, join_path(path, option.name), f);
  }
}

void for_every_table(const std::function<void(const Section&, const std::string&)>& f) {
  visit(table_of(static_cast<const Options*>(nullptr)), "", f);
}

TEST(Document, EveryOptionHasANameOfItsOwnAndASentence) {
  for_every_table([](const Section& section, const std::string& path) {
    std::vector<std::string_view> names;
    for (const Option& option : section.options) {
      EXPECT_TRUE(option.doc.ends_with('.')) << path << "." << option.name;
      EXPECT_FALSE(option.type.empty()) << path << "." << option.name;
      for (const auto& list :
           {std::vector<std::string_view>{option.name}, option.rule.aliases, option.rule.old_names}) {
        names.insert(names.end(), list.begin(), list.end());
      }
    }
    for (const Retired& retired : section.retired) names.push_back(retired.name);
    std::sort(names.begin(), names.end());
    EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end()) << path << ": a name occurs twice";
  });
}

TEST(Document, EveryDefaultIsAcceptedWhenItIsWrittenOut) {
  const Config config = parsed(R"("zero_optimization": {"stage": 3, "offload_param": {}, "offload_optimizer": {}},
      "inference": {}, "weight_quantization": {}, "tensor_parallel": {"partition_config": {"layer_specs": [{}]}},
      "autotuning": {"model_info": {}},
      "data_efficiency": {"data_sampling": {"curriculum_learning": {"curriculum_metrics": {"m": {}}}}},
      "compression_training": {"row_pruning": {"different_groups": {"g": {}}}})");
  const Config again = Config::parse(config.to_json(), 1);
  EXPECT_EQ(again.to_json(), config.to_json());
  EXPECT_TRUE(again.warnings().empty());
}

TEST(Document, ThePageNamesEveryKey) {
  const std::string page = documentation();
  for_every_table([&](const Section& section, const std::string&) {
    for (const Option& option : section.options) EXPECT_CONTAINS(page, "| `" + std::string(option.name) + "` |");
  });
  EXPECT_CONTAINS(page, "## zero_optimization.offload_optimizer");
  EXPECT_CONTAINS(page, "Also: `prefetch_bucket_size`.");
  EXPECT_CONTAINS(page, "| `cpu_offload` | | | Deprecated;");
}

}  // namespace
}  // namespace deepscale::config
