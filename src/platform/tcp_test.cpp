#include "platform/tcp.h"

#include <gtest/gtest.h>

#include <thread>

namespace deepscale {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Pair {
  TcpConnection client;
  TcpConnection server;
};

Pair connected_pair() {
  TcpListener listener;
  std::string reason;
  auto client = TcpConnection::connect("127.0.0.1", listener.port(), seconds(5), &reason);
  EXPECT_TRUE(client.has_value()) << reason;
  for (int attempt = 0; attempt < 500; ++attempt) {
    if (auto server = listener.accept()) return {std::move(*client), std::move(*server)};
    std::this_thread::sleep_for(milliseconds(10));
  }
  throw std::runtime_error("the connection did not arrive");
}

std::string wait_line(TcpConnection& connection) {
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (auto line = connection.next_line()) return *line;
    connection.wait_readable(milliseconds(50));
  }
  return "(nothing)";
}

TEST(Tcp, CarriesLinesBothWaysWhateverTheirPieces) {
  Pair pair = connected_pair();
  pair.client.set_peer_timeout(seconds(5));
  const std::string big(300'000, 'x');
  pair.client.send_line("one");
  pair.client.send_line("");
  pair.client.send_line(big);
  pair.server.send_line("back");
  EXPECT_EQ(wait_line(pair.server), "one");
  EXPECT_EQ(wait_line(pair.server), "");
  std::thread writer([&] { EXPECT_TRUE(pair.client.flush(seconds(5))); });
  EXPECT_EQ(wait_line(pair.server), big);
  writer.join();
  EXPECT_EQ(wait_line(pair.client), "back");
  EXPECT_FALSE(pair.client.next_line().has_value());
  EXPECT_FALSE(pair.client.closed());
}

TEST(Tcp, KeepsLastWordsOfAPeerThatLeft) {
  Pair pair = connected_pair();
  pair.client.send_line("last words");
  pair.client.flush(seconds(5));
  { const TcpConnection gone = std::move(pair.client); }
  EXPECT_EQ(wait_line(pair.server), "last words");
  for (int attempt = 0; attempt < 100 && !pair.server.closed(); ++attempt) {
    EXPECT_FALSE(pair.server.next_line().has_value());
    pair.server.wait_readable(milliseconds(50));
  }
  EXPECT_TRUE(pair.server.closed());
  EXPECT_FALSE(pair.server.closed_reason().empty());
  pair.server.send_line("into the void");  // must not raise a signal
  EXPECT_FALSE(pair.server.flush(milliseconds(100)));
}

TEST(Tcp, RefusesAnEndlessLine) {
  Pair pair = connected_pair();
  std::thread writer([&] {
    pair.client.send_line(std::string(4 * TcpConnection::kMaxLineBytes, 'x'));
    pair.client.flush(seconds(5));
  });
  for (int attempt = 0; attempt < 6000 && !pair.server.closed(); ++attempt) {
    EXPECT_FALSE(pair.server.next_line().has_value());
    pair.server.wait_readable(milliseconds(10));
  }
  EXPECT_TRUE(pair.server.closed());
  { const TcpConnection hung_up = std::move(pair.server); }  // or the writer would wait for its reader
  writer.join();
}

TEST(Tcp, SaysWhyNobodyAnswers) {
  int free_port = 0;
  { free_port = TcpListener().port(); }
  std::string reason;
  EXPECT_FALSE(TcpConnection::connect("127.0.0.1", free_port, milliseconds(500), &reason).has_value());
  EXPECT_FALSE(reason.empty());
  reason.clear();
  EXPECT_FALSE(TcpConnection::connect("no-such-host.invalid", free_port, milliseconds(500), &reason).has_value());
  EXPECT_EQ(reason, "the name cannot be resolved");
}

TEST(Tcp, NamesBothEndsInNumbers) {
  const Pair pair = connected_pair();
  EXPECT_EQ(pair.client.local_address(), "127.0.0.1");
  EXPECT_EQ(pair.server.peer_address(), "127.0.0.1");
  EXPECT_TRUE(is_loopback(pair.server.local_address()));
  for (const std::string& address : own_addresses()) {
    EXPECT_FALSE(is_loopback(address));
    EXPECT_FALSE(interface_of(address).empty()) << address;
  }
  EXPECT_EQ(interface_of("203.0.113.7"), "");
}

}  // namespace
}  // namespace deepscale
