#include "launcher/control.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"

namespace deepscale {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// Time for a connection to show its token: port scanners and confused programs do not stay.
constexpr std::chrono::seconds kIntroduction{10};

std::string line_of(const json& message) {
  return message.dump(-1, ' ', false, json::error_handler_t::replace);
}

json json_of(const RankPlace& place) {
  return {place.rank, place.world_size, place.local_rank, place.local_size, place.node, place.nodes};
}

RankPlace place_of(const json& array) {
  return {array.at(0).get<int>(), array.at(1).get<int>(), array.at(2).get<int>(),
          array.at(3).get<int>(), array.at(4).get<int>(), array.at(5).get<int>()};
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
    if (kind == "failed") {
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

/// The introduction, if the line is one and shows the token.
std::optional<AgentHello> read_hello(const std::string& line, const std::string& token) {
  const json message = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!message.is_object()) return std::nullopt;
  try {
    if (message.at("token").get<std::string>() != token) return std::nullopt;
    AgentHello hello;
    message.at("index").get_to(hello.index);
    message.at("host").get_to(hello.host);
    message.at("process").get_to(hello.process);
    message.at("port").get_to(hello.port);
    return hello;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

}  // namespace

ControlServer::ControlServer(std::string token, std::chrono::seconds peer_timeout)
    : token_(std::move(token)), peer_timeout_(peer_timeout) {}

void ControlServer::read_peer(Peer& peer, std::vector<AgentEvent>& events) {
  while (auto line = peer.connection.next_line()) {
    AgentEvent event;
    if (peer.index < 0) {
      const auto hello = read_hello(*line, token_);
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
    peers_.push_back({std::move(*connection), -1, false, Clock::now()});
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
  for (Peer& peer : peers_) {
    if (peer.index == index) peer.connection.send_line(line_of(message));
  }
}

void ControlServer::stop(StopSignal signal) {
  const json message = {{"kind", "stop"}, {"interrupt", signal == StopSignal::kInterrupt}};
  for (Peer& peer : peers_) {
    if (peer.index >= 0) peer.connection.send_line(line_of(message));
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

ControlClient::ControlClient(const AgentPlan& plan) : token_(plan.token) {
  constexpr milliseconds kPerAddress{3000};
  constexpr int kRounds = 2;
  std::string reason;
  for (int round = 0; round < kRounds && !connection_; ++round) {
    for (const std::string& address : plan.control_addresses) {
      connection_ = TcpConnection::connect(address, plan.control_port, kPerAddress, &reason);
      if (connection_) break;
    }
  }
  DS_CHECK_AS(IoError, connection_.has_value(), "cannot reach the launcher at {}, port {}: {}; is a firewall between?",
              fmt::join(plan.control_addresses, ", "), plan.control_port, reason);
  connection_->set_peer_timeout(std::chrono::seconds(plan.peer_timeout_s));
}

void ControlClient::hello(const AgentHello& hello) {
  connection_->send_line(line_of({{"kind", "hello"},
                                  {"token", token_},
                                  {"index", hello.index},
                                  {"host", hello.host},
                                  {"process", hello.process},
                                  {"port", hello.port}}));
}

void ControlClient::read() {
  while (auto line = connection_->next_line()) {
    const json message = json::parse(*line, nullptr, /*allow_exceptions=*/false);
    if (!message.is_object()) continue;
    const std::string kind = message.value("kind", "");
    if (kind == "stop") {
      stop_ = message.value("interrupt", false) ? StopSignal::kInterrupt : StopSignal::kTerminate;
    } else if (kind == "go") {
      go_ = AgentGo{message.value("master_addr", ""), message.value("master_port", 0), place_of(message.at("place"))};
    }
  }
}

std::optional<AgentGo> ControlClient::wait_go(milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  for (;;) {
    read();
    if (go_ || stop_ || connection_->closed() || Clock::now() >= deadline) return go_;
    connection_->wait_readable(std::min(milliseconds(200), std::chrono::ceil<milliseconds>(deadline - Clock::now())));
  }
}

void ControlClient::done(const AgentDone& done) {
  connection_->send_line(line_of({{"kind", "done"}, {"code", done.code}, {"problem", done.problem}}));
  connection_->flush(milliseconds(2000));
}

std::optional<StopSignal> ControlClient::poll() {
  read();
  if (stop_) return stop_;
  if (connection_->closed()) return StopSignal::kTerminate;
  return std::nullopt;
}

void ControlClient::rank_failed(const RankFailure& failure) {
  connection_->send_line(line_of({{"kind", "failed"}, {"failure", json_of(failure)}}));
}

std::string ControlClient::lost() const {
  return connection_->closed() ? connection_->closed_reason() : std::string();
}

}  // namespace deepscale
