#include "launcher/control.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

#include "base/error.h"

namespace deepscale {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Kind = AgentEvent::Kind;

/// Long enough for a machine that is busy with other things.
constexpr seconds kPatience{60};

AgentTicket ticket_for(const ControlServer& server, const std::string& run = "run") {
  AgentTicket ticket;
  ticket.run = run;
  ticket.addresses = {"127.0.0.1"};
  ticket.port = server.port();
  return ticket;
}

/// Events that arrive until there are `count` of them.
std::vector<AgentEvent> events_of(ControlServer& server, size_t count) {
  std::vector<AgentEvent> events;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (events.size() < count && std::chrono::steady_clock::now() < deadline) {
    for (AgentEvent& event : server.poll()) events.push_back(std::move(event));
    if (events.size() < count) std::this_thread::sleep_for(milliseconds(5));
  }
  return events;
}

/// A server that answers every agent's hello with a plan, in a thread of its own, until it is told to end.
class Launcher {
 public:
  Launcher() : server_("run", "secret", seconds(30)), thread_([this] { serve(); }) {}
  ~Launcher() { end(); }

  void end() {
    ended_ = true;
    if (thread_.joinable()) thread_.join();
  }
  const ControlServer& server() const { return server_; }
  /// Only after end().
  ControlServer& quiet_server() { return server_; }
  const std::vector<AgentEvent>& events() const { return events_; }

 private:
  void serve() {
    while (!ended_) {
      for (AgentEvent& event : server_.poll()) {
        AgentPlan plan;
        plan.first_rank = 10 + event.index;
        if (event.kind == Kind::kHello) server_.plan(event.index, plan);
        events_.push_back(std::move(event));
      }
      std::this_thread::sleep_for(milliseconds(2));
    }
  }

  ControlServer server_;
  std::atomic<bool> ended_ = false;
  std::vector<AgentEvent> events_;
  std::thread thread_;
};

TEST(Control, CarriesARunFromHelloToDone) {
  Launcher launcher;
  ControlClient agent(ticket_for(launcher.server()), "secret");
  const auto plan = agent.hello({2, "host", 77}, kPatience);
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->first_rank, 12);
  agent.ready(29500);
  launcher.end();
  ControlServer& server = launcher.quiet_server();
  std::vector<AgentEvent> events = launcher.events();
  if (events.size() < 2) events.push_back(events_of(server, 1).at(0));
  EXPECT_EQ(events[0].kind, Kind::kHello);
  EXPECT_EQ(events[0].index, 2);
  EXPECT_EQ(events[0].hello.host, "host");
  EXPECT_EQ(events[0].hello.process, 77);
  EXPECT_EQ(events[1].kind, Kind::kReady);
  EXPECT_EQ(events[1].port, 29500);
  EXPECT_FALSE(agent.wait_go(milliseconds(1)).has_value());
  server.go(2, {"10.0.0.1", 1234, {4, 8, 0, 2, 2, 3}});
  const auto go = agent.wait_go(kPatience);
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
  Launcher launcher;
  ControlClient agent(ticket_for(launcher.server()), "secret");
  ASSERT_TRUE(agent.hello({0, "host", 1}, kPatience).has_value());
  launcher.end();
  launcher.quiet_server().stop(StopSignal::kInterrupt);
  EXPECT_FALSE(agent.wait_go(kPatience).has_value());
  EXPECT_EQ(agent.poll(), StopSignal::kInterrupt);
  EXPECT_EQ(agent.lost(), "");
}

TEST(Control, NoticesAnAgentThatIsGone) {
  Launcher launcher;
  {
    ControlClient agent(ticket_for(launcher.server()), "secret");
    ASSERT_TRUE(agent.hello({1, "host", 1}, kPatience).has_value());
    launcher.end();
  }
  const std::vector<AgentEvent> events = events_of(launcher.quiet_server(), 1);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind, Kind::kLost);
  EXPECT_EQ(events[0].index, 1);
  EXPECT_FALSE(events[0].reason.empty());
}

TEST(Control, NoticesALauncherThatIsGone) {
  auto launcher = std::make_unique<Launcher>();
  ControlClient orphan(ticket_for(launcher->server()), "secret");
  ASSERT_TRUE(orphan.hello({0, "host", 1}, kPatience).has_value());
  launcher.reset();
  EXPECT_FALSE(orphan.wait_go(kPatience).has_value());
  EXPECT_EQ(orphan.poll(), StopSignal::kTerminate);
  EXPECT_NE(orphan.lost(), "");
}

TEST(Control, IgnoresWhoDoesNotKnowTheTokenAndSecondsOfTheSame) {
  Launcher launcher;
  ControlClient stranger(ticket_for(launcher.server()), "guess");
  EXPECT_FALSE(stranger.hello({0, "stranger", 1}, kPatience).has_value());
  auto noise = TcpConnection::connect("127.0.0.1", launcher.server().port(), kPatience);
  ASSERT_TRUE(noise.has_value());
  noise->send_line("GET / HTTP/1.1");
  noise->send_line(R"({"token":7})");
  ControlClient agent(ticket_for(launcher.server()), "secret");
  ASSERT_TRUE(agent.hello({0, "host", 1}, kPatience).has_value());
  ControlClient twin(ticket_for(launcher.server()), "secret");
  EXPECT_FALSE(twin.hello({0, "twin", 1}, kPatience).has_value());
  EXPECT_NE(twin.lost(), "");
  launcher.end();
  ASSERT_EQ(launcher.events().size(), 1u);
  EXPECT_EQ(launcher.events()[0].hello.host, "host");
}

TEST(Control, RunsNothingForALauncherThatDoesNotKnowTheToken) {
  TcpListener impostor;
  std::thread serving([&] {
    std::optional<TcpConnection> connection;
    for (int look = 0; look < 12000 && !connection; ++look) {
      connection = impostor.accept();
      std::this_thread::sleep_for(milliseconds(5));
    }
    ASSERT_TRUE(connection.has_value());
    connection->send_line(R"({"kind":"welcome","run":"run","challenge":"0"})");
    std::optional<std::string> hello;
    for (int look = 0; look < 600 && !hello; ++look) {
      connection->wait_readable(milliseconds(100));
      hello = connection->next_line();
    }
    EXPECT_EQ(hello.value_or("").find("secret"), std::string::npos) << "the token itself is never sent";
    connection->send_line(R"({"kind":"plan","proof":"0","plan":")" + encode_plan({}) + "\"}");
    connection->flush(milliseconds(2000));
  });
  AgentTicket ticket;
  ticket.run = "run";
  ticket.addresses = {"127.0.0.1"};
  ticket.port = impostor.port();
  ControlClient agent(ticket, "secret");
  EXPECT_THROW((void)agent.hello({0, "host", 1}, kPatience), IoError);
  serving.join();
}

TEST(Control, ShowsItsTokenToItsOwnLauncherOnly) {
  Launcher launcher;
  try {
    ControlClient agent(ticket_for(launcher.server(), "another run"), "secret");
    ADD_FAILURE() << "connected to a stranger";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("127.0.0.1 is not this run's launcher"), std::string::npos)
        << error.what();
  }
  launcher.end();
  EXPECT_TRUE(launcher.events().empty());
}

TEST(Control, NamesTheAddressesThatDidNotAnswer) {
  AgentTicket ticket;
  ticket.addresses = {"127.0.0.1"};
  { ticket.port = ControlServer("run", "x", seconds(1)).port(); }
  try {
    ControlClient agent(ticket, "x");
    ADD_FAILURE() << "connected to nobody";
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find("127.0.0.1"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace deepscale
