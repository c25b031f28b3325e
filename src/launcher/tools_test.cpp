// The small programs beside the launcher, run as programs.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "platform/machine.h"
#include "platform/process.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

namespace fs = std::filesystem;

class Tools : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    folder_ = fs::temp_directory_path() / (std::string(test->name()) + std::to_string(this_process_id()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string file(const std::string& name, const std::string& text) const {
    const fs::path path = folder_ / name;
    std::ofstream(path) << text;
    fs::permissions(path, fs::perms::owner_all);
    return path.string();
  }

  /// Standard error goes to error().
  ProcessOutput run(std::vector<std::string> arguments, const std::string& first_in_path = "") const {
    ProcessSpec spec;
    spec.arguments = std::move(arguments);
    for (auto [name, value] : environment_variables()) {
      if (name == "WORLD_SIZE") continue;
      if (name == "PATH" && !first_in_path.empty()) value = first_in_path + ":" + value;
      spec.environment.push_back(name + "=" + value);
    }
    return run_and_read(spec, (folder_ / "error").string());
  }
  std::string error() const {
    std::ifstream text(folder_ / "error");
    return {std::istreambuf_iterator<char>(text), {}};
  }

  fs::path folder_;
};

constexpr const char* kElastic = R"({"elasticity": {"enabled": true, "version": 0.1, "max_train_batch_size": 4,
  "micro_batch_sizes": [1, 2, 3, 4]}})";

TEST_F(Tools, DsElasticPrintsBatchValidSizesAndMicroBatch) {
  const std::string config = file("config.json", kElastic);
  const ProcessOutput all = run({DEEPSCALE_ELASTIC_PATH, "-c", config});
  EXPECT_EQ(all.status.code, 0) << error();
  EXPECT_NE(all.output.find("Calculated results:\n"), std::string::npos) << all.output;
  EXPECT_NE(all.output.find("final_batch_size .... 4\nvalid_gpus .......... [1, 2, 4]\n"), std::string::npos);
  EXPECT_EQ(all.output.find("micro_batch_size .... "), std::string::npos);
  const ProcessOutput two = run({DEEPSCALE_ELASTIC_PATH, "--config", config, "--world-size", "2"});
  EXPECT_NE(two.output.find("Calculated results for world size 2:\n"), std::string::npos) << two.output;
  EXPECT_NE(two.output.find("micro_batch_size .... 2\n"), std::string::npos) << two.output;
}

TEST_F(Tools, DsElasticSaysWhatIsWrong) {
  const std::string config = file("config.json", kElastic);
  EXPECT_EQ(run({DEEPSCALE_ELASTIC_PATH, "-c", config, "-w", "3"}).status.code, 1);
  EXPECT_NE(error().find("3 data-parallel ranks cannot share the batch of 4"), std::string::npos) << error();
  EXPECT_EQ(run({DEEPSCALE_ELASTIC_PATH, "-c", file("none.json", "{}")}).status.code, 1);
  EXPECT_EQ(run({DEEPSCALE_ELASTIC_PATH, "-c", (folder_ / "missing").string()}).status.code, 1);
  EXPECT_EQ(run({DEEPSCALE_ELASTIC_PATH}).status.code, 2);
  EXPECT_EQ(run({DEEPSCALE_ELASTIC_PATH, "-c", config, "-w", "-1"}).status.code, 2);
}

#ifdef DEEPSCALE_HAS_SHELL
/// Stands in for ssh: runs the command here; the host "bad" cannot be reached.
constexpr const char* kFakeSsh = R"(#!/bin/sh
for word; do host=$command; command=$word; done
[ "$host" = bad ] && { echo "no route to bad" >&2; exit 255; }
HERE=$host sh -c "$command"
)";

TEST_F(Tools, DsSshRunsTheCommandOnEveryHostAndPrefixesItsOutput) {
  file("ssh", kFakeSsh);
  const std::string hosts = file("hosts", "one slots=2\n# comment\ntwo slots=1\n");
  const ProcessOutput result =
      run({DEEPSCALE_SSH_PATH, "--no_pdsh", "-f", hosts, "echo", "-n", "from $HERE;", "echo", "-f"}, folder_.string());
  EXPECT_EQ(result.status.code, 0) << error();
  EXPECT_NE(result.output.find("one: "), std::string::npos) << result.output;
  EXPECT_NE(result.output.find("from two"), std::string::npos) << result.output;
}

TEST_F(Tools, DsSshNamesTheHostsThatFailed) {
  file("ssh", kFakeSsh);
  const std::string hosts = file("hosts", "one slots=2\nbad slots=1\n");
  const ProcessOutput result = run({DEEPSCALE_SSH_PATH, "--no_pdsh", "-f", hosts, "true"}, folder_.string());
  EXPECT_EQ(result.status.code, 255);
  EXPECT_NE(result.output.find("bad: no route to bad\n"), std::string::npos) << result.output;
  EXPECT_NE(error().find("failed on bad (exit code 255)"), std::string::npos) << error();
}

TEST_F(Tools, DsSshUsesPdshWhereItIsInstalled) {
  file("pdsh", "#!/bin/sh\necho \"one: $*\"\necho 'pdsh@here: two: ssh exited with exit code 3' >&2\nexit 3\n");
  const std::string hosts = file("hosts", "one slots=2\ntwo slots=1\n");
  const ProcessOutput result = run({DEEPSCALE_SSH_PATH, "-f", hosts, "uptime"}, folder_.string());
  EXPECT_EQ(result.status.code, 3);
  EXPECT_NE(result.output.find("-w one,two uptime"), std::string::npos) << result.output;
  EXPECT_NE(error().find("failed on two"), std::string::npos) << error();
}
#endif

TEST_F(Tools, DsSshRefusesWhatItCannotUse) {
  EXPECT_EQ(run({DEEPSCALE_SSH_PATH, "-f", (folder_ / "missing").string(), "true"}).status.code, 1);
  EXPECT_NE(error().find("missing"), std::string::npos);
  EXPECT_EQ(run({DEEPSCALE_SSH_PATH, "-f", file("hosts", "one gpus=2\n"), "true"}).status.code, 1);
  EXPECT_EQ(run({DEEPSCALE_SSH_PATH, "-f", file("hosts", "one slots=2\n")}).status.code, 2);
}

}  // namespace
}  // namespace deepscale
