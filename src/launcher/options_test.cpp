#include "launcher/options.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "launcher/resource_filter.h"

namespace deepscale {
namespace {

using Strings = std::vector<std::string>;

LauncherOptions parse(const Strings& arguments) {
  return parse_command_line(arguments).options;
}

/// The error's text; fails the test when there is none.
std::string error_of(const Strings& arguments) {
  try {
    parse_command_line(arguments);
  } catch (const ConfigError& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST(LauncherOptions, TakesTheScriptAndEverythingAfterItVerbatim) {
  const LauncherOptions options =
      parse({"--num_gpus", "2", "train.py", "--num_gpus", "3", "--x=a b", "", "-q", "--help"});
  EXPECT_EQ(options.ranks_per_node, 2);
  EXPECT_EQ(options.script, "train.py");
  EXPECT_EQ(options.script_arguments, (Strings{"--num_gpus", "3", "--x=a b", "", "-q", "--help"}));
  EXPECT_EQ(options.log_level, LogLevel::kInfo);
}

TEST(LauncherOptions, DoesNotTakeAnOptionsValueForTheScript) {
  EXPECT_EQ(parse({"--master_addr", "train.py", "real.py"}).script, "real.py");
  EXPECT_EQ(parse({"-i", "localhost:0", "real.py"}).include, "localhost:0");
  EXPECT_EQ(parse({"-ilocalhost:1", "real.py"}).include, "localhost:1");
  EXPECT_EQ(parse({"--num_accelerators=4", "real.py"}).ranks_per_node, 4);
  EXPECT_EQ(parse({"--num_gpus", "-1", "real.py"}).ranks_per_node, -1);
}

TEST(LauncherOptions, RestoresDashesThatAWordProcessorReplaced) {
  EXPECT_EQ(restore_dashes("\xE2\x80\x93"
                           "deepscale"),
            "--deepscale");
  EXPECT_EQ(restore_dashes("\xE2\x80\x93"
                           "q"),
            "-q");
  EXPECT_EQ(restore_dashes("a\xE2\x80\x93"
                           "b"),
            "a\xE2\x80\x93"
            "b");
  EXPECT_EQ(parse({"cifar.py",
                   "\xE2\x80\x93"
                   "deepscale"})
                .script_arguments,
            Strings{"--deepscale"});
}

TEST(LauncherOptions, AcceptsTheDeepspeedFlagBeforeTheScriptToo) {
  EXPECT_EQ(parse({"--deepspeed", "train.py", "--deepspeed"}).script_arguments, Strings{"--deepspeed"});
}

TEST(LauncherOptions, TreatsBothNamesOfTheLogDirectoryAlike) {
  EXPECT_EQ(parse({"--log_dir", "logs", "a.py"}).log_dir, "logs");
  EXPECT_EQ(parse({"--enable_each_rank_log", "logs", "a.py"}).log_dir, "logs");
  EXPECT_NE(error_of({"--log_dir", "a", "--enable_each_rank_log", "b", "a.py"}).find("different directories"),
            std::string::npos);
}

TEST(LauncherOptions, NamesTheNearestKnownOptionOfAMistypedOne) {
  const std::string error = error_of({"--num_gpu", "2", "a.py"});
  EXPECT_NE(error.find("--num_gpu\""), std::string::npos) << error;
  EXPECT_NE(error.find("did you mean --num_gpus"), std::string::npos) << error;
}

TEST(LauncherOptions, RefusesContradictionsAndBadValues) {
  EXPECT_NE(error_of({"--include", "a", "--exclude", "b", "x.py"}).find("contradict"), std::string::npos);
  EXPECT_NE(error_of({"--include", "localhost:0", "--num_gpus", "1", "x.py"}).find("cannot be combined"),
            std::string::npos);
  EXPECT_NE(error_of({"--num_gpus", "0", "x.py"}).find("at least 1"), std::string::npos);
  EXPECT_NE(error_of({"--num_gpus", "-3", "x.py"}).find("at least 1"), std::string::npos);
  EXPECT_NE(error_of({"--num_gpus", "two", "x.py"}).find("--num_gpus"), std::string::npos);
  EXPECT_NE(error_of({"--master_port", "70000", "x.py"}).find("1..65535"), std::string::npos);
  EXPECT_NE(error_of({"--module", "--no_python", "x"}).find("contradict"), std::string::npos);
  EXPECT_NE(error_of({"--quiet", "--verbose", "x.py"}).find("contradicts"), std::string::npos);
  EXPECT_NE(error_of({"--launcher", "teleport", "x.py"}).find("teleport"), std::string::npos);
  EXPECT_NE(error_of({"--log_level", "loud", "x.py"}).find("loud"), std::string::npos);
  EXPECT_NE(error_of({"--num_gpus", "2"}).find("no script"), std::string::npos);
  EXPECT_NE(error_of({"--master_port"}).find("--master_port"), std::string::npos);
}

TEST(LauncherOptions, NotesFeaturesThatAreNotBuiltInsteadOfIgnoringThem) {
  EXPECT_EQ(parse({"--node_rank", "1", "x.py"}).not_built, Strings{"multi-node: not built yet (--node_rank)"});
  EXPECT_EQ(parse({"--launcher", "slurm", "x.py"}).not_built, Strings{"multi-node: not built yet (--launcher slurm)"});
  EXPECT_EQ(parse({"--autotuning", "run", "x.py"}).not_built, Strings{"autotuning: not built yet (--autotuning)"});
  EXPECT_TRUE(parse({"--launcher", "local", "x.py"}).not_built.empty());
}

TEST(LauncherOptions, OffersHelpAndVersionWithoutAScript) {
  EXPECT_NE(parse_command_line({"--help"}).text.value_or("").find("--num_gpus"), std::string::npos);
  EXPECT_NE(parse_command_line({"--version"}).text.value_or("").find("deepspeed "), std::string::npos);
}

TEST(CoreList, ExpandsRangesAndRefusesDisorder) {
  EXPECT_EQ(parse_core_list("0,2-4,6"), (std::vector<int>{0, 2, 3, 4, 6}));
  for (const char* bad : {"", "a", "4-2", "1,1", "3,2", "1,,2", "1-", "-1"}) {
    EXPECT_THROW(parse_core_list(bad), ConfigError) << bad;
  }
}

TEST(ResourceFilter, KeepsOrRemovesHostsAndSlotsInTheirOrder) {
  const std::vector<HostSlots> all = {{"a", {"0", "1", "2"}}, {"b", {"0", "1"}}};
  using Hosts = std::vector<HostSlots>;
  EXPECT_EQ(include_resources(all, parse_filter("b@a:2,0", "--include")),
            (Hosts{{"a", {"0", "2"}}, {"b", {"0", "1"}}}));
  EXPECT_EQ(exclude_resources(all, parse_filter("b@a:1", "--exclude")), (Hosts{{"a", {"0", "2"}}}));
}

TEST(ResourceFilter, RefusesMalformedAndUnknownNames) {
  for (const char* bad : {"", "@", ":0", "a:", "a:x", "a:0,0", "a@a", "a:-1"}) {
    EXPECT_THROW(parse_filter(bad, "--include"), ConfigError) << bad;
  }
  const std::vector<HostSlots> all = {{"a", {"0", "1"}}};
  EXPECT_THROW(include_resources(all, parse_filter("c", "--include")), ConfigError);
  EXPECT_THROW(include_resources(all, parse_filter("a:7", "--include")), ConfigError);
  EXPECT_THROW(exclude_resources(all, parse_filter("a", "--exclude")), ConfigError);
}

}  // namespace
}  // namespace deepscale
