// The control channel of a run over several machines: every agent holds one TCP connection to the launcher. It carries
// one JSON object per line. Both sides show that they know the run's token, and neither sends it: each answers the
// other's challenge with an HMAC (RFC 2104). So nobody gets a plan who may not, and no agent runs the plan of a
// stranger who listens on the same port of an address that both machines have. What is sent is not encrypted.
//   launcher -> agent   welcome (the run's name, a challenge), plan (what to run, and its own proof), go (all are
//   ready:
//                       rendezvous and places), stop
//   agent -> launcher   hello (who and where I am, a challenge and the proof), ready (my machine can run it),
//                       failed (a rank's failure), done
// A side whose peer is gone, closed or silent beyond the timeout, sees that as Event::kLost; this is how a machine that
// was cut off ends its ranks by itself. Threads: each object is used by one.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "launcher/agent_plan.h"
#include "launcher/launch_plan.h"
#include "launcher/supervise.h"
#include "platform/tcp.h"

namespace deepscale {

/// An agent introduces itself.
struct AgentHello {
  int index = -1;       ///< of the machine, or the rank where agents run one rank each
  std::string host;     ///< its own host name
  int64_t process = 0;  ///< of the agent
};

/// What an agent needs to start its ranks.
struct AgentGo {
  std::string master_addr;
  int master_port = 0;
  RankPlace first_rank;  ///< of its ranks; the others follow
};

/// How an agent's ranks ended.
struct AgentDone {
  int code = 0;
  std::string problem;  ///< why nothing ran, or why it stopped without a rank's failure; empty: nothing to say
};

/// What the launcher hears.
struct AgentEvent {
  enum class Kind : uint8_t { kHello, kReady, kFailed, kDone, kLost };
  Kind kind = Kind::kHello;
  int index = -1;
  AgentHello hello;
  int port = 0;  ///< kReady: a free port of its machine, for the rendezvous; 0 when it has none
  RankFailure failure;
  AgentDone done;
  std::string reason;  ///< kLost: why
};

class ControlServer {
 public:
  /// Listens. Throws IoError.
  ControlServer(std::string run, std::string token, std::chrono::seconds peer_timeout);

  int port() const { return listener_.port(); }
  /// What has arrived since the last call. Does not wait. kLost comes once per agent, after its last words, and only
  /// for agents that have not said done.
  std::vector<AgentEvent> poll();
  void plan(int index, const AgentPlan& plan);
  void go(int index, const AgentGo& go);
  void stop(StopSignal signal);
  /// The address by which an agent is reached by others: its own as the launcher sees it, or, for an agent on this
  /// machine, the one that others reached this machine by.
  std::string address_of(int index) const;

 private:
  struct Peer {
    TcpConnection connection;
    int index = -1;  ///< -1: has not introduced itself
    bool finished = false;
    std::chrono::steady_clock::time_point since;
    std::string challenge;  ///< of this side
    std::string answer;     ///< to the agent's
  };
  void read_peer(Peer& peer, std::vector<AgentEvent>& events);
  const Peer* find(int index) const;

  void send(int index, const std::string& line);

  TcpListener listener_;
  std::string run_;
  std::string token_;
  std::chrono::seconds peer_timeout_;
  std::vector<Peer> peers_;
};

/// An agent's end.
class ControlClient : public RunLink {
 public:
  /// Connects to the first address of the ticket where this run's launcher answers, those of other machines first.
  /// Throws IoError naming the addresses.
  ControlClient(const AgentTicket& ticket, std::string token);

  /// Introduces itself and waits for the plan. Nothing when the launcher said stop or is gone. Throws ConfigError for a
  /// plan that cannot be read, IoError when it comes from somebody who does not know the token.
  std::optional<AgentPlan> hello(const AgentHello& hello, std::chrono::milliseconds timeout);
  void ready(int port);
  /// Waits until the launcher says go. Nothing when it said stop or is gone (see poll and lost()).
  std::optional<AgentGo> wait_go(std::chrono::milliseconds timeout);
  void done(const AgentDone& done);

  std::optional<StopSignal> poll() override;
  void rank_failed(const RankFailure& failure) override;
  /// Why the launcher is gone; empty while it is there.
  std::string lost() const;
  /// This machine's address on the way to the launcher.
  std::string local_address() const { return connection_->local_address(); }

 private:
  void read();
  template <typename Ready>
  void wait_until(std::chrono::milliseconds timeout, const Ready& ready);

  std::string token_;
  std::string challenge_;       ///< the launcher's
  std::string expected_proof_;  ///< what the launcher must answer to ours
  std::optional<TcpConnection> connection_;
  std::optional<std::string> plan_;
  std::optional<AgentGo> go_;
  std::optional<StopSignal> stop_;
};

}  // namespace deepscale
