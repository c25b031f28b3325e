#include "launcher/hostfile.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "launcher/text.h"

namespace deepscale {
namespace {

std::string error_of(const std::string& text) {
  try {
    parse_hostfile(text, "hosts");
  } catch (const ConfigError& error) {
    return error.what();
  }
  ADD_FAILURE() << "no error for " << text;
  return {};
}

TEST(Hostfile, HoldsHostsAndSlotsInOrder) {
  const auto hosts =
      parse_hostfile("# cluster\n\nworker-2 slots=2\r\n  10.0.0.1\tslots=1 max_slots=4 # first\n", "hosts");
  const std::vector<HostSlots> expected = {{"worker-2", {"0", "1"}}, {"10.0.0.1", {"0"}}};
  EXPECT_EQ(hosts, expected);
}

TEST(Hostfile, NamesTheLineThatDoesNotFit) {
  for (const char* line :
       {"worker", "worker slots=", "worker slots=x", "worker slots=2x", "worker slots=-1", "worker slots=1 slots=2",
        "worker slots=1 gpu", "worker slot=1", "slots=4", "worker slots=99999999999"}) {
    const std::string error = error_of(std::string("a slots=1\n") + line);
    EXPECT_NE(error.find("hostfile hosts, line 2"), std::string::npos) << error;
    EXPECT_NE(error.find("expected \"host slots=N\""), std::string::npos) << error;
  }
  EXPECT_NE(error_of("a slots=0").find("has 0 slots"), std::string::npos);
  EXPECT_NE(error_of("a slots=70000").find("70000 slots"), std::string::npos);
  EXPECT_NE(error_of("-oProxyCommand=x slots=1").find("not a host name"), std::string::npos);
  EXPECT_NE(error_of("a slots=1\nb slots=1\na slots=2").find("line 3: host \"a\" is named twice"), std::string::npos);
  EXPECT_NE(error_of("# nothing\n\n").find("names no host"), std::string::npos);
  EXPECT_THROW(read_hostfile("/no/such/hostfile"), ConfigError);
  EXPECT_THROW(read_hostfile(::testing::TempDir()), ConfigError);
}

TEST(WorldInfo, HoldsHostsInTheOrderOfTheRanks) {
  const std::vector<HostSlots> expected = {{"zeta", {"0", "1"}}, {"alpha", {"3"}}};
  EXPECT_EQ(parse_world_info(base64url("{\"zeta\": [0, 1], \"alpha\": [3]}")), expected);
  for (const char* bad : {"", "[]", "{}", "{\"a\": []}", "{\"a\": 1}", "{\"a\": [-1]}", "{\"a\": [\"0\"]}", "{"})
    EXPECT_THROW(parse_world_info(base64url(bad)), ConfigError) << bad;
  EXPECT_THROW(parse_world_info("!"), ConfigError);
}

}  // namespace
}  // namespace deepscale
