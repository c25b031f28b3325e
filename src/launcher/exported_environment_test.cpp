#include "launcher/exported_environment.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "platform/path_list.h"

namespace deepscale {
namespace {

TEST(ExportedEnvironment, TakesLibrariesVariablesAlongAndLeavesTheMachinesOwn) {
  const Variables exported = exported_variables({{"NCCL_DEBUG", "INFO"},
                                                 {"PYTHONPATH", "/lib"},
                                                 {"PYTHONHASHSEED", "0"},
                                                 {"MV2_X", "1"},
                                                 {"DEEPSPEED_TIMEOUT", "3"},
                                                 {"DEEPSPEED_RESTART_COUNT", "2"},
                                                 {"PATH", "/bin"},
                                                 {"HOME", "/home/me"},
                                                 {"CUDA_VISIBLE_DEVICES", "0"}},
                                                "/work dir");
  const Variables expected = {{"NCCL_DEBUG", "INFO"},
                              {"PYTHONPATH", std::string("/work dir") + kPathListSeparator + "/lib"},
                              {"PYTHONHASHSEED", "0"},
                              {"MV2_X", "1"},
                              {"DEEPSPEED_TIMEOUT", "3"}};
  EXPECT_EQ(exported, expected);
  EXPECT_EQ(exported_variables({}, "/d"), (Variables{{"PYTHONPATH", "/d"}}));
}

TEST(ExportedEnvironment, ReadsLinesOfNamesAndValues) {
  const Variables expected = {{"A", "1"}, {"B_2", "x=y z"}, {"C", ""}, {"D", "'"}};
  EXPECT_EQ(parse_environment_file("A=1\r\n\n# comment\n  B_2=\"x=y z\"\nC=\nD='\n", "f"), expected);
  for (const char* line : {"A", "=1", "1A=1", "A B=1", "export A=1"}) {
    try {
      parse_environment_file(std::string("X=1\n") + line, "file");
      ADD_FAILURE() << line;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find("file, line 2"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace deepscale
