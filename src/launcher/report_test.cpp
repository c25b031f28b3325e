#include "launcher/report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

namespace deepscale {
namespace {

Report small_report() {
  Report report;
  report.operators = {{"cpu_adam", true, true, ""},
                      {"async_io", false, false, "not built yet"},
                      {"deepspeed_shm_comm", true, false, "no shared memory"}};
  report.environment = {{"versions.torch", "torch version", "2.11.0", "", ""},
                        {"versions.nvcc", "nvcc version", ReportLine::Missing{}, "", ""},
                        {"memory.total_bytes", "memory", int64_t{1} << 30, "1.00 GB", "small"},
                        {"cpu.features", "processor features", std::vector<std::string>{"avx2", "fma"}, "", ""}};
  return report;
}

TEST(Report, HasTheCustomaryColumns) {
  const std::string text = format_report(small_report(), {});
  for (const char* line :
       {"cpu_adam .............. [YES] ...... [OKAY]\n", "async_io .............. [NO] ....... [NO]  not built yet\n",
        "deepspeed_shm_comm .... [YES] ...... [NO]  no shared memory\n", "torch version ................... 2.11.0\n",
        "nvcc version .................... none\n", "memory .......................... 1.00 GB\n [WARNING] small\n",
        "processor features .............. avx2 fma\n"}) {
    EXPECT_NE(text.find(line), std::string::npos) << line << "in\n" << text;
  }
  EXPECT_EQ(text.find('\033'), std::string::npos);
  ReportView colored;
  colored.colors = true;
  EXPECT_NE(format_report(small_report(), colored).find("\033[92m[OKAY]\033[0m"), std::string::npos);
}

TEST(Report, LeavesOutWhatIsHidden) {
  ReportView view;
  view.operators = false;
  EXPECT_EQ(format_report(small_report(), view).find("cpu_adam"), std::string::npos);
  EXPECT_FALSE(nlohmann::json::parse(format_report_json(small_report(), view)).contains("operators"));
  view.operators = true;
  view.warnings = false;
  const std::string text = format_report(small_report(), view);
  EXPECT_EQ(text.find("small"), std::string::npos);
  EXPECT_EQ(text.find("not built yet"), std::string::npos);
  EXPECT_FALSE(nlohmann::json::parse(format_report_json(small_report(), view)).contains("warnings"));
}

TEST(Report, SaysTheSameInJson) {
  const auto json = nlohmann::json::parse(format_report_json(small_report(), {}));
  EXPECT_TRUE(json["operators"][0]["installed"].get<bool>());
  EXPECT_FALSE(json["operators"][1]["compatible"].get<bool>());
  EXPECT_EQ(json["versions"]["torch"], "2.11.0");
  EXPECT_TRUE(json["versions"]["nvcc"].is_null());
  EXPECT_EQ(json["memory"]["total_bytes"], 1 << 30);
  EXPECT_EQ(json["cpu"]["features"], (std::vector<std::string>{"avx2", "fma"}));
  EXPECT_EQ(json["warnings"][0], "memory.total_bytes: small");
}

TEST(Report, PathsThatAreNotUtf8DoNotEndTheReport) {
  Report report;
  report.environment = {{"paths.torch", "torch install path", std::string("/opt/\xff"), "", ""}};
  EXPECT_FALSE(nlohmann::json::parse(format_report_json(report, {})).is_discarded());
}

TEST(Report, EveryKeyOccursOnceAndEveryOperatorThatIsNotUsableSaysWhy) {
  const Report report = make_report(PythonCheck::kFilesOnly);
  std::set<std::string> keys;
  for (const ReportLine& line : report.environment) {
    EXPECT_NE(line.key.find('.'), std::string::npos) << line.key;
    EXPECT_TRUE(keys.insert(line.key).second) << line.key;
  }
  std::set<std::string> operators;
  for (const OperatorRow& row : report.operators) {
    EXPECT_TRUE(operators.insert(row.name).second) << row.name;
    EXPECT_EQ(row.why_not.empty(), row.usable) << row.name;
    EXPECT_TRUE(row.built || !row.usable) << row.name;
  }
  EXPECT_TRUE(operators.contains("cpu_adam") && operators.contains("evoformer_attn"));
}

TEST(Report, NoOperatorIsSaidToWorkWithoutItsLibraries) {
  for (const OperatorRow& row : operator_rows({false, "the Python package is not installed"})) {
    EXPECT_FALSE(row.built || row.usable) << row.name;
    EXPECT_FALSE(row.why_not.empty()) << row.name;
  }
  const std::vector<OperatorRow> no_torch = operator_rows({true, "torch is not installed"});
  EXPECT_TRUE(std::any_of(no_torch.begin(), no_torch.end(), [](const OperatorRow& row) { return row.built; }));
  EXPECT_TRUE(std::none_of(no_torch.begin(), no_torch.end(), [](const OperatorRow& row) { return row.usable; }));
  const std::vector<OperatorRow> all = operator_rows({true, ""});
  EXPECT_TRUE(std::any_of(all.begin(), all.end(), [](const OperatorRow& row) { return row.usable; }));
}

TEST(Report, DescribesThisMachine) {
  const auto json = nlohmann::json::parse(format_report_json(make_report(PythonCheck::kFilesOnly), {}));
  EXPECT_GT(json["memory"]["total_bytes"].get<int64_t>(), int64_t{1} << 26);
  EXPECT_GE(json["cpu"]["cores"].get<int64_t>(), 1);
  EXPECT_FALSE(json["versions"]["compiler"].get<std::string>().empty());
  EXPECT_FALSE(json["versions"]["deepspeed"].get<std::string>().empty());
  EXPECT_TRUE(json["devices"]["gpus"].is_array());
}

}  // namespace
}  // namespace deepscale
