#include "comm/init.h"

#include <array>
#include <charconv>
#include <memory>
#include <utility>

#include "base/environment.h"
#include "base/error.h"
#include "comm/host_communicator.h"
#include "comm/process_group_gloo.h"
#include "comm/torch_communicator.h"

namespace deepscale {
namespace {

using Reader = std::function<std::optional<std::string>(const std::string&)>;

/// How one launcher calls a rank's numbers.
struct Dialect {
  const char* rank;
  const char* world_size;
  const char* local_rank;
};
constexpr std::array<Dialect, 4> kDialects{{
    {"RANK", "WORLD_SIZE", "LOCAL_RANK"},
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"},
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"},
}};

std::optional<int64_t> read_int(const Reader& read, const char* name) {
  const std::optional<std::string> text = read(name);
  if (!text) return std::nullopt;
  int64_t value = 0;
  const char* end = text->data() + text->size();
  const auto [stop, error] = std::from_chars(text->data(), end, value);
  DS_CHECK_AS(ConfigError, error == std::errc() && stop == end,
              "environment variable {}: expected an integer, got '{}'", name, *text);
  return value;
}

/// The first dialect that is spoken completely. One half of RANK and WORLD_SIZE without the other is an error.
std::optional<Dialect> find_dialect(const Reader& read) {
  for (const Dialect& dialect : kDialects) {
    if (read(dialect.rank) && read(dialect.world_size)) return dialect;
  }
  const bool rank_only = read("RANK").has_value() && !read("WORLD_SIZE");
  const bool size_only = read("WORLD_SIZE").value_or("1") != "1" && !read("RANK");
  DS_CHECK_AS(ConfigError, !rank_only,
              "RANK is set and WORLD_SIZE is not; set both, or start with `deepspeed` or torchrun");
  DS_CHECK_AS(ConfigError, !size_only,
              "WORLD_SIZE is {} and RANK is not set; set both, or start with `deepspeed` or torchrun",
              *read("WORLD_SIZE"));
  return std::nullopt;
}

std::chrono::milliseconds timeout_of(const InitOptions& options) {
  if (options.timeout) return *options.timeout;
  const std::optional<int64_t> minutes = environment_int("DEEPSPEED_TIMEOUT");
  DS_CHECK_AS(ConfigError, minutes.value_or(1) > 0, "DEEPSPEED_TIMEOUT must be at least 1 minute, got {}", *minutes);
  return std::chrono::minutes(minutes.value_or(10));
}

std::shared_ptr<TorchStore> open_store(const RankEnvironment& at, std::chrono::milliseconds timeout) {
  TorchStore::TcpOptions tcp;
  tcp.host = at.master_address;
  tcp.port = at.master_port;
  tcp.is_server = at.rank == 0 && !at.store_is_served;
  tcp.wait_for_ranks = at.store_is_served ? 0 : at.world_size;
  tcp.timeout = timeout;
  return TorchStore::tcp(tcp)->with_prefix(fmt::format("deepscale/attempt_{}", at.attempt));
}

/// Shared memory among all ranks, or nothing.
std::shared_ptr<HostCommunicator> connect_host(const RankEnvironment& at, const std::shared_ptr<TorchStore>& store,
                                               std::chrono::milliseconds timeout, bool wanted) {
  const HostRendezvous exchange = store_rendezvous(store, at.rank, at.world_size);
  wanted = wanted && environment_int("DEEPSCALE_HOST_COMM").value_or(1) != 0;
  for (const std::string& answer : exchange(wanted ? "yes" : "no")) wanted = wanted && answer == "yes";
  if (!wanted) return nullptr;
  HostOptions options;
  options.timeout = timeout;
  auto host = HostCommunicator::connect(at.rank, at.world_size, exchange, options).communicator;
  // Rank 0 serves the store: it stays until everybody has read the last answer.
  if (host) host->barrier("start").wait();
  return host;
}

}  // namespace

RankEnvironment read_rank_environment(const Reader& read) {
  RankEnvironment at;
  const std::optional<Dialect> dialect = find_dialect(read);
  if (!dialect) {
    at.local_rank = static_cast<int>(read_int(read, "LOCAL_RANK").value_or(0));
    return at;
  }
  const int64_t rank = *read_int(read, dialect->rank);
  const int64_t size = *read_int(read, dialect->world_size);
  DS_CHECK_AS(ConfigError, size >= 1 && rank >= 0 && rank < size, "{}={} must lie in 0..{}-1 ({}={})", dialect->rank,
              rank, dialect->world_size, dialect->world_size, size);
  at.rank = static_cast<int>(rank);
  at.world_size = static_cast<int>(size);
  at.local_rank =
      static_cast<int>(read_int(read, "LOCAL_RANK").value_or(read_int(read, dialect->local_rank).value_or(at.rank)));
  if (at.world_size == 1) return at;

  const std::optional<std::string> address = read("MASTER_ADDR");
  DS_CHECK_AS(ConfigError, address.has_value(),
              "WORLD_SIZE is {} and MASTER_ADDR is not set: it names the machine of rank 0 (127.0.0.1 on one machine); "
              "`deepspeed` and torchrun set it",
              size);
  at.master_address = *address;
  const int64_t port = read_int(read, "MASTER_PORT").value_or(29500);
  DS_CHECK_AS(ConfigError, port > 0 && port < 65536, "MASTER_PORT must lie in 1..65535, got {}", port);
  at.master_port = static_cast<uint16_t>(port);
  at.store_is_served = read("TORCHELASTIC_USE_AGENT_STORE").value_or("") == "True";
  at.attempt = static_cast<int>(read_int(read, "TORCHELASTIC_RESTART_COUNT").value_or(0));
  return at;
}

Communicator make_world(const RankEnvironment& at, const InitOptions& options) {
  if (at.world_size == 1) return Communicator::self();
  const std::chrono::milliseconds timeout = timeout_of(options);
  const std::shared_ptr<TorchStore> store = open_store(at, timeout);
  if (auto host = connect_host(at, store, timeout, options.use_host)) return Communicator::host(std::move(host));
  GlooOptions gloo;
  gloo.timeout = timeout;
  gloo.interface = environment("GLOO_SOCKET_IFNAME").value_or("");
  const bool one_machine = at.master_address == "127.0.0.1" || at.master_address == "localhost";
  if (one_machine) gloo.address = "127.0.0.1";
  return make_torch_communicator(make_gloo_group(store, at.rank, at.world_size, gloo), HostUse::kNever);
}

Communicator world_from_environment(const InitOptions& options) {
  return make_world(read_rank_environment([](const std::string& name) { return environment(name.c_str()); }), options);
}

}  // namespace deepscale
