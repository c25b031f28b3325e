#include "launcher/report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace deepscale {
namespace {

Report small_report() {
  Report report;
  report.operators = {{"cpu_adam", true, ""}, {"async_io", false, "not built yet"}};
  report.environment = {{"torch version", "2.11.0", ""}, {"memory", "1.00 GB", "small"}};
  return report;
}

TEST(Report, HasTheCustomaryColumns) {
  const std::string text = format_report(small_report(), {});
  EXPECT_NE(text.find("cpu_adam .............. [YES] ...... [OKAY]\n"), std::string::npos) << text;
  EXPECT_NE(text.find("async_io .............. [NO] ....... [NO]  not built yet\n"), std::string::npos) << text;
  EXPECT_NE(text.find("torch version ................... 2.11.0\n"), std::string::npos) << text;
  EXPECT_NE(text.find("[WARNING] small"), std::string::npos) << text;
  EXPECT_EQ(text.find('\033'), std::string::npos) << "colors only on a terminal";
}

TEST(Report, HidesWhatIsNotWanted) {
  ReportView view;
  view.operators = false;
  EXPECT_EQ(format_report(small_report(), view).find("cpu_adam"), std::string::npos);
  view.operators = true;
  view.warnings = false;
  const std::string text = format_report(small_report(), view);
  EXPECT_EQ(text.find("small"), std::string::npos);
  EXPECT_EQ(text.find("not built yet"), std::string::npos);
}

TEST(Report, SaysTheSameInJson) {
  const auto json = nlohmann::json::parse(format_report_json(small_report()));
  EXPECT_TRUE(json["operators"][0]["installed"].get<bool>());
  EXPECT_FALSE(json["operators"][1]["compatible"].get<bool>());
  EXPECT_EQ(json["environment"]["torch version"], "2.11.0");
  EXPECT_EQ(json["warnings"][0], "memory: small");
}

TEST(Report, DescribesThisMachineEvenWithoutTorch) {
  const Report report = make_report(PythonCheck::kFilesOnly);
  const auto value = [&](const std::string& name) {
    const auto line = std::find_if(report.environment.begin(), report.environment.end(),
                                   [&](const ReportLine& candidate) { return candidate.name == name; });
    return line == report.environment.end() ? std::string("(missing)") : line->value;
  };
  EXPECT_NE(value("torch version"), "(missing)");
  EXPECT_NE(value("shared memory (/dev/shm) size").find(" GB"), std::string::npos);
  EXPECT_NE(value("processor").find("usable cores"), std::string::npos);
}

}  // namespace
}  // namespace deepscale
