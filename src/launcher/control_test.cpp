#include "launcher/control.h"

#include <gtest/gtest.h>

#include <functional>
#include <thread>

#include "base/error.h"

namespace deepscale {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = AgentEvent::Kind;

AgentPlan plan_for(const ControlServer& server, const std::string& token = "secret") {
  AgentPlan plan;
  plan.token = token;
  plan.control_addresses = {"127.0.0.1"};
  plan.control_port = server.port();
  return plan;
}

/// Events that arrive until there are `count` of them or two seconds are over.
std::vector<AgentEvent> events_of(ControlServer& server, size_t count) {
  std::vector<AgentEvent> events;
  for (int attempt = 0; attempt < 200 && events.size() < count; ++attempt) {
    for (AgentEvent& event : server.poll()) events.push_back(std::move(event));
    if (events.size() < count) std::this_thread::sleep_for(milliseconds(10));
  }
  return events;
}

TEST(Control, CarriesARunFromHelloToDone) {
  ControlServer server("secret", seconds(5));
  ControlClient agent(plan_for(server));
  agent.hello({2, "host", 77, 29500});
  std::vector<AgentEvent> events = events_of(server, 1);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].index, 2);
  EXPECT_EQ(events[0].hello.host, "host");
  EXPECT_EQ(events[0].hello.process, 77);
  EXPECT_EQ(events[0].hello.port, 29500);
  EXPECT_FALSE(agent.wait_go(milliseconds(1)).has_value());
  server.go(2, {"10.0.0.1", 1234, {4, 8, 0, 2, 2, 3}});
  const auto go = agent.wait_go(seconds(2));
  ASSERT_TRUE(go.has_value());
  EXPECT_EQ(go->master_addr, "10.0.0.1");
  EXPECT_EQ(go->master_port, 1234);
  EXPECT_EQ(go->first_rank.rank, 4);
  EXPECT_EQ(go->first_rank.nodes, 3);
  EXPECT_EQ(agent.poll(), std::nullopt);

  agent.rank_failed({5, 1, 99, {0, 9}, 2.5, "its standard error", {"one", "caf\xE9"}});
  agent.done({137, ""});
  events = events_of(server, 2);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].kind, Kind::kFailed);
  EXPECT_EQ(events[0].failure.rank, 5);
  EXPECT_EQ(events[0].failure.status.shell_code(), 137);
  ASSERT_EQ(events[0].failure.lines.size(), 2u);
  EXPECT_EQ(events[0].failure.lines[0], "one");
  EXPECT_EQ(events[1].kind, Kind::kDone);
  EXPECT_EQ(events[1].done.code, 137);
}

TEST(Control, TellsAgentsToStop) {
  ControlServer server("secret", seconds(5));
  ControlClient agent(plan_for(server));
  agent.hello({0, "host", 1, 1});
  ASSERT_EQ(events_of(server, 1).size(), 1u);
  server.stop(StopSignal::kInterrupt);
  EXPECT_FALSE(agent.wait_go(seconds(2)).has_value());
  EXPECT_EQ(agent.poll(), StopSignal::kInterrupt);
  EXPECT_EQ(agent.lost(), "");
}

TEST(Control, NoticesAPeerThatIsGone) {
  ControlServer server("secret", seconds(5));
  {
    ControlClient agent(plan_for(server));
    agent.hello({1, "host", 1, 1});
    ASSERT_EQ(events_of(server, 1).size(), 1u);
  }
  const std::vector<AgentEvent> events = events_of(server, 1);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind, Kind::kLost);
  EXPECT_EQ(events[0].index, 1);
  EXPECT_FALSE(events[0].reason.empty());
  EXPECT_TRUE(events_of(server, 0).empty());

  auto other = std::make_unique<ControlServer>("secret", seconds(5));
  ControlClient orphan(plan_for(*other));
  orphan.hello({0, "host", 1, 1});
  ASSERT_EQ(events_of(*other, 1).size(), 1u);
  other.reset();
  EXPECT_FALSE(orphan.wait_go(seconds(2)).has_value());
  EXPECT_EQ(orphan.poll(), StopSignal::kTerminate);
  EXPECT_NE(orphan.lost(), "");
}

TEST(Control, IgnoresWhoDoesNotKnowTheTokenAndSecondsOfTheSame) {
  ControlServer server("secret", seconds(5));
  ControlClient stranger(plan_for(server, "guess"));
  stranger.hello({0, "stranger", 1, 1});
  auto noise = TcpConnection::connect("127.0.0.1", server.port(), seconds(2));
  ASSERT_TRUE(noise.has_value());
  noise->send_line("GET / HTTP/1.1");
  noise->send_line(R"({"token":7})");
  ControlClient agent(plan_for(server));
  agent.hello({0, "host", 1, 1});
  std::vector<AgentEvent> events = events_of(server, 1);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].hello.host, "host");
  ControlClient twin(plan_for(server));
  twin.hello({0, "twin", 1, 1});
  EXPECT_FALSE(twin.wait_go(seconds(2)).has_value());
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_TRUE(server.poll().empty());
}

TEST(Control, NamesTheAddressesThatDidNotAnswer) {
  AgentPlan plan;
  plan.control_addresses = {"127.0.0.1"};
  { plan.control_port = ControlServer("x", seconds(1)).port(); }
  try {
    ControlClient agent(plan);
    ADD_FAILURE() << "connected to nobody";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("127.0.0.1"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace deepscale
