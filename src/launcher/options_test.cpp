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

TEST(LauncherOptions, ReadsWhatSeveralMachinesNeed) {
  const LauncherOptions options =
      parse({"-H", "hosts", "--launcher", "PDSH", "--launcher_args", "-u 5", "--ssh_port", "2222", "--force_multi",
             "--venv_script", "v.sh", "--max_restarts", "3", "x.py"});
  EXPECT_EQ(options.hostfile, "hosts");
  EXPECT_EQ(options.backend, Backend::kPdsh);
  EXPECT_EQ(options.launcher_args, "-u 5");
  EXPECT_EQ(options.ssh_port, 2222);
  EXPECT_TRUE(options.force_multi);
  EXPECT_EQ(options.venv_script, "v.sh");
  EXPECT_EQ(options.max_restarts, 3);
  EXPECT_EQ(parse({"x.py"}).backend, std::nullopt);
  EXPECT_EQ(parse({"--launcher", "standard", "x.py"}).backend, std::nullopt);
  for (const char* name : {"local", "ssh", "pdsh", "openmpi", "mpich", "impi", "mvapich", "slurm"}) {
    EXPECT_STREQ(backend_name(parse({"--launcher", name, "x.py"}).backend.value()), name);
  }
  const LauncherOptions here = parse({"--no_ssh", "--node_rank", "1", "--master_addr", "10.0.0.1", "x.py"});
  EXPECT_TRUE(here.no_ssh);
  EXPECT_EQ(here.node_rank, 1);
}

TEST(LauncherOptions, MakesElasticTrainingRestart) {
  EXPECT_EQ(parse({"--elastic_training", "x.py"}).max_restarts, 100);
  const LauncherOptions options = parse(
      {"--elastic_training", "--min_elastic_nodes", "2", "--max_elastic_nodes", "4", "--max_restarts", "1", "x.py"});
  EXPECT_EQ(options.min_nodes, 2);
  EXPECT_EQ(options.max_nodes, 4);
  EXPECT_EQ(options.max_restarts, 1);
}

TEST(LauncherOptions, RefusesContradictionsAboutMachines) {
  const std::vector<std::pair<Strings, std::string>> cases = {
      {{"--node_rank", "1"}, "belong together"},
      {{"--no_ssh"}, "belong together"},
      {{"--no_ssh", "--node_rank", "0"}, "--master_addr"},
      {{"--no_ssh", "--node_rank", "-2", "--master_addr", "a"}, "at least 0"},
      {{"--no_ssh", "--node_rank", "0", "--master_addr", "a", "--force_multi"}, "contradict"},
      {{"--force_multi", "--launcher", "local"}, "contradict"},
      {{"--ssh_port", "0"}, "1..65535"},
      {{"--max_restarts", "-1"}, "--max_restarts"},
      {{"--min_elastic_nodes", "2"}, "--elastic_training"},
      {{"--elastic_training", "--min_elastic_nodes", "3", "--max_elastic_nodes", "2"}, "--max_elastic_nodes"},
      {{"--launcher_args", "'a"}, "does not end"},
  };
  for (auto [arguments, reason] : cases) {
    arguments.emplace_back("x.py");
    const std::string error = error_of(arguments);
    EXPECT_NE(error.find(reason), std::string::npos) << error;
  }
  EXPECT_THROW(parse({"--autotuning", "run", "x.py"}), UnsupportedError);
}

TEST(LauncherOptions, OffersHelpAndVersionWithoutAScript) {
  EXPECT_NE(parse_command_line({"--help"}).text.value_or("").find("--num_gpus"), std::string::npos);
  EXPECT_NE(parse_command_line({"--version"}).text.value_or("").find("deepspeed "), std::string::npos);
}

TEST(CoreList, ExpandsRangesAndRefusesDisorder) {
  EXPECT_EQ(parse_core_list("0,2-4,6"), (std::vector<int>{0, 2, 3, 4, 6}));
  for (const char* bad : {"", "a", "4-2", "1,1", "3,2", "1,,2", "1-", "-1", "0-2000000000"}) {
    EXPECT_THROW(parse_core_list(bad), ConfigError) << bad;
  }
}

TEST(ResourceFilter, KeepsOrRemovesHostsAndSlotsInTheirOrder) {
  const std::vector<HostSlots> all = {{"a", {"0", "1", "2"}}, {"b", {"0", "1"}}};
  using Hosts = std::vector<HostSlots>;
  EXPECT_EQ(include_resources(all, parse_filter("b@a:2,0", "--include")),
            (Hosts{{"a", {"0", "2"}}, {"b", {"0", "1"}}}));
  EXPECT_EQ(exclude_resources(all, parse_filter("b@a:1", "--exclude")), (Hosts{{"a", {"0", "2"}}}));
  EXPECT_EQ(parse_filter("a:2@b@a:0", "--include"), (Hosts{{"a", {"2", "0"}}, {"b", {}}}));
}

TEST(ResourceFilter, RefusesMalformedAndUnknownNames) {
  for (const char* bad : {"", "@", ":0", "a:", "a:x", "a:0,0", "a@a", "a:0@a", "a@a:0", "a:0@a:0", "a:-1"}) {
    EXPECT_THROW(parse_filter(bad, "--include"), ConfigError) << bad;
  }
  const std::vector<HostSlots> all = {{"a", {"0", "1"}}};
  EXPECT_THROW(include_resources(all, parse_filter("c", "--include")), ConfigError);
  EXPECT_THROW(include_resources(all, parse_filter("a:7", "--include")), ConfigError);
  EXPECT_THROW(exclude_resources(all, parse_filter("a", "--exclude")), ConfigError);
}

}  // namespace
}  // namespace deepscale
