#include "launcher/control.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/sha256.h"
#include "launcher/json_line.h"
#include "platform/random.h"

namespace deepscale {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// Time for a connection to show its token: port scanners and confused programs do not stay.
constexpr std::chrono::seconds kIntroduction{10};

json json_of(const RankPlace& place) {
  return {place.rank, place.world_size, place.local_rank, place.local_size, place.node, place.nodes};
}

RankPlace place_of(const json& array) {
  return {array.at(0).get<int>(), array.at(1).get<int>(), array.at(2).get<int>(),
          array.at(3).get<int>(), array.at(4).get<int>(), array.at(5).get<int>()};
}

constexpr const char* kAgentSide = "agent";
constexpr const char* kLauncherSide = "launcher";

/// Empty when the object has no such text.
std::string text_in(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

json json_of(const RankFailure& failure) {
  return {{"rank", failure.rank},
          {"local_rank", failure.local_rank},
          {"process", failure.process},
          {"code", failure.status.code},
          {"signal", failure.status.signal},
          {"after", failure.after_s},
          {"source", failure.source},
          {"lines", failure.lines}};
}

RankFailure failure_of(const json& object) {
  RankFailure failure;
  object.at("rank").get_to(failure.rank);
  object.at("local_rank").get_to(failure.local_rank);
  object.at("process").get_to(failure.process);
  object.at("code").get_to(failure.status.code);
  object.at("signal").get_to(failure.status.signal);
  object.at("after").get_to(failure.after_s);
  object.at("source").get_to(failure.source);
  object.at("lines").get_to(failure.lines);
  return failure;
}

/// Fills the event from an agent's message; false when the message is none.
bool read_message(const std::string& line, AgentEvent& event) {
  const json message = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!message.is_object()) return false;
  try {
    const auto kind = message.at("kind").get<std::string>();
    if (kind == "ready") {
      event.kind = AgentEvent::Kind::kReady;
      message.at("port").get_to(event.port);
    } else if (kind == "failed") {
      event.kind = AgentEvent::Kind::kFailed;
      event.failure = failure_of(message.at("failure"));
    } else if (kind == "done") {
      event.kind = AgentEvent::Kind::kDone;
      message.at("code").get_to(event.done.code);
      message.at("problem").get_to(event.done.problem);
    } else {
      return false;
    }
    return true;
  } catch (const json::exception&) {
    return false;
  }
}

/// What a side answers to the other's challenge: it knows the token, and is not the other side itself.
std::string proof(const std::string& token, const char* side, const std::string& challenge, const std::string& own) {
  return hmac_sha256(token, fmt::format("{} {} {}", side, challenge, own));
}

/// The introduction, if the line is one and shows that the agent knows the token. `answer` is then what the agent wants
/// to see from its launcher.
std::optional<AgentHello> read_hello(const std::string& line, const std::string& token, const std::string& challenge,
                                     std::string& answer) {
  const json message = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!message.is_object()) return std::nullopt;
  try {
    const auto agents = message.at("challenge").get<std::string>();
    if (!equal_secrets(message.at("proof").get<std::string>(), proof(token, kAgentSide, challenge, agents))) {
      return std::nullopt;
    }
    answer = proof(token, kLauncherSide, agents, challenge);
    AgentHello hello;
    message.at("index").get_to(hello.index);
    message.at("host").get_to(hello.host);
    message.at("process").get_to(hello.process);
    return hello;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

}  // namespace

ControlServer::ControlServer(std::string run, std::string token, std::chrono::seconds peer_timeout)
    : run_(std::move(run)), token_(std::move(token)), peer_timeout_(peer_timeout) {}

void ControlServer::read_peer(Peer& peer, std::vector<AgentEvent>& events) {
  while (auto line = peer.connection.next_line()) {
    AgentEvent event;
    if (peer.index < 0) {
      const auto hello = read_hello(*line, token_, peer.challenge, peer.answer);
      const bool taken = hello && find(hello->index) != nullptr;
      if (!hello || hello->index < 0 || taken) {
        peer.finished = true;  // none of ours
        return;
      }
      peer.index = hello->index;
      event.hello = *hello;
    } else if (!read_message(*line, event)) {
      continue;
    }
    event.index = peer.index;
    if (event.kind == AgentEvent::Kind::kDone) peer.finished = true;
    events.push_back(std::move(event));
  }
  if (!peer.connection.closed() || peer.finished) return;
  peer.finished = true;
  if (peer.index < 0) return;
  AgentEvent event;
  event.kind = AgentEvent::Kind::kLost;
  event.index = peer.index;
  event.reason = peer.connection.closed_reason();
  events.push_back(std::move(event));
}

std::vector<AgentEvent> ControlServer::poll() {
  while (auto connection = listener_.accept()) {
    connection->set_peer_timeout(peer_timeout_);
    std::string challenge = random_token();
    connection->send_line(json_line({{"kind", "welcome"}, {"run", run_}, {"challenge", challenge}}));
    peers_.push_back({std::move(*connection), -1, false, Clock::now(), std::move(challenge), {}});
  }
  std::vector<AgentEvent> events;
  for (Peer& peer : peers_) read_peer(peer, events);
  std::erase_if(peers_, [](const Peer& peer) {
    return peer.index < 0 && (peer.finished || Clock::now() - peer.since > kIntroduction);
  });
  return events;
}

const ControlServer::Peer* ControlServer::find(int index) const {
  const auto found = std::find_if(peers_.begin(), peers_.end(), [&](const Peer& peer) { return peer.index == index; });
  return found == peers_.end() ? nullptr : &*found;
}

void ControlServer::go(int index, const AgentGo& go) {
  const json message = {{"kind", "go"},
                        {"master_addr", go.master_addr},
                        {"master_port", go.master_port},
                        {"place", json_of(go.first_rank)}};
  send(index, json_line(message));
}

void ControlServer::plan(int index, const AgentPlan& plan) {
  const Peer* const peer = find(index);
  if (peer == nullptr) return;
  send(index, json_line({{"kind", "plan"}, {"proof", peer->answer}, {"plan", encode_plan(plan)}}));
}

void ControlServer::send(int index, const std::string& line) {
  for (Peer& peer : peers_) {
    if (peer.index == index) peer.connection.send_line(line);
  }
}

void ControlServer::stop(StopSignal signal) {
  const json message = {{"kind", "stop"}, {"interrupt", signal == StopSignal::kInterrupt}};
  for (Peer& peer : peers_) {
    if (peer.index >= 0) peer.connection.send_line(json_line(message));
  }
}

std::string ControlServer::address_of(int index) const {
  const Peer* peer = find(index);
  if (peer == nullptr) return {};
  const std::string address = peer->connection.peer_address();
  if (address != peer->connection.local_address()) return address;
  for (const Peer& other : peers_) {
    const bool elsewhere = other.index >= 0 && other.connection.peer_address() != other.connection.local_address();
    if (elsewhere) return other.connection.local_address();
  }
  return address;
}

namespace {

/// Addresses in the order in which an agent tries them. Those that its own machine has too (a bridge of containers, the
/// loopback) come last: on another machine than the launcher's they lead to somebody else.
std::vector<std::string> in_order_of_trust(std::vector<std::string> addresses) {
  const std::vector<std::string> own = own_addresses();
  std::stable_partition(addresses.begin(), addresses.end(), [&](const std::string& address) {
    return !is_loopback(address) && std::find(own.begin(), own.end(), address) == own.end();
  });
  return addresses;
}

/// The challenge of who is at the other end, if that is the launcher of this run, or says so.
std::optional<std::string> welcome(TcpConnection& connection, const std::string& run, milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  while (!connection.closed() && Clock::now() < deadline) {
    if (const auto line = connection.next_line()) {
      const json message = json::parse(*line, nullptr, /*allow_exceptions=*/false);
      const bool ours = message.is_object() && text_in(message, "kind") == "welcome" && text_in(message, "run") == run;
      return ours ? std::optional(text_in(message, "challenge")) : std::nullopt;
    }
    connection.wait_readable(milliseconds(200));
  }
  return std::nullopt;
}

}  // namespace

ControlClient::ControlClient(const AgentTicket& ticket, std::string token) : token_(std::move(token)) {
  constexpr milliseconds kPerAddress{3000};
  constexpr milliseconds kWelcome{10'000};
  constexpr int kRounds = 2;
  const std::vector<std::string> addresses = in_order_of_trust(ticket.addresses);
  std::string reason;
  for (int round = 0; round < kRounds && !connection_; ++round) {
    for (const std::string& address : addresses) {
      auto connection = TcpConnection::connect(address, ticket.port, kPerAddress, &reason);
      if (!connection) continue;
      if (auto challenge = welcome(*connection, ticket.run, kWelcome)) {
        connection_ = std::move(connection);
        challenge_ = std::move(*challenge);
        break;
      }
      reason = fmt::format("{} is not this run's launcher", address);
    }
  }
  DS_CHECK_AS(IoError, connection_.has_value(), "cannot reach the launcher at {}, port {}: {}; is a firewall between?",
              fmt::join(addresses, ", "), ticket.port, reason);
  connection_->set_peer_timeout(std::chrono::seconds(ticket.peer_timeout_s));
}

template <typename Ready>
void ControlClient::wait_until(milliseconds timeout, const Ready& ready) {
  const Clock::time_point deadline = Clock::now() + timeout;
  for (;;) {
    read();
    if (ready() || stop_ || connection_->closed() || Clock::now() >= deadline) return;
    connection_->wait_readable(std::min(milliseconds(200), std::chrono::ceil<milliseconds>(deadline - Clock::now())));
  }
}

std::optional<AgentPlan> ControlClient::hello(const AgentHello& hello, milliseconds timeout) {
  const std::string own = random_token();
  expected_proof_ = proof(token_, kLauncherSide, own, challenge_);
  connection_->send_line(json_line({{"kind", "hello"},
                                    {"challenge", own},
                                    {"proof", proof(token_, kAgentSide, challenge_, own)},
                                    {"index", hello.index},
                                    {"host", hello.host},
                                    {"process", hello.process}}));
  wait_until(timeout, [&] { return plan_.has_value(); });
  if (!plan_) return std::nullopt;
  return decode_plan(*plan_);
}

void ControlClient::ready(int port) {
  connection_->send_line(json_line({{"kind", "ready"}, {"port", port}}));
}

void ControlClient::read() {
  while (auto line = connection_->next_line()) {
    const json message = json::parse(*line, nullptr, /*allow_exceptions=*/false);
    if (!message.is_object()) continue;
    const std::string kind = text_in(message, "kind");
    if (kind == "stop") {
      stop_ = message.value("interrupt", false) ? StopSignal::kInterrupt : StopSignal::kTerminate;
    } else if (kind == "plan") {
      DS_CHECK_AS(IoError, equal_secrets(text_in(message, "proof"), expected_proof_),
                  "who answers at {} does not know this run's token: it is not the launcher",
                  connection_->peer_address());
      plan_ = text_in(message, "plan");
    } else if (kind == "go") {
      go_ = AgentGo{message.value("master_addr", ""), message.value("master_port", 0), place_of(message.at("place"))};
    }
  }
}

std::optional<AgentGo> ControlClient::wait_go(milliseconds timeout) {
  wait_until(timeout, [&] { return go_.has_value(); });
  return go_;
}

void ControlClient::done(const AgentDone& done) {
  connection_->send_line(json_line({{"kind", "done"}, {"code", done.code}, {"problem", done.problem}}));
  connection_->flush(milliseconds(2000));
}

std::optional<StopSignal> ControlClient::poll() {
  read();
  if (stop_) return stop_;
  if (connection_->closed()) return StopSignal::kTerminate;
  return std::nullopt;
}

void ControlClient::rank_failed(const RankFailure& failure) {
  connection_->send_line(json_line({{"kind", "failed"}, {"failure", json_of(failure)}}));
}

std::string ControlClient::lost() const {
  return connection_->closed() ? connection_->closed_reason() : std::string();
}

}  // namespace deepscale
