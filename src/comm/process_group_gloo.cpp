#include "comm/process_group_gloo.h"

#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>

#include "base/error.h"
#include "comm/c10d_process_group.h"
#include "comm/torch_positions.h"

namespace deepscale {
namespace {

/// Runs `body`; torch's errors become CommError with `what` in front.
template <typename Body>
auto translated(const std::string& what, const Body& body) {
  try {
    return body();
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    ds_throw<CommError>("{}: {}", what, reason_of(error));
  }
}

class C10dStore final : public TorchStore {
 public:
  C10dStore(c10::intrusive_ptr<c10d::Store> store, uint16_t port) : store_(std::move(store)), port_(port) {}

  void set(const std::string& key, const std::string& value) override {
    translated(fmt::format("store: setting '{}'", key), [&] { store_->set(key, value); });
  }
  std::string get(const std::string& key) override {
    return translated(fmt::format("store: waiting for '{}'", key), [&] { return store_->get_to_str(key); });
  }
  [[nodiscard]] bool has(const std::string& key) override {
    return translated(fmt::format("store: looking for '{}'", key), [&] { return store_->check({key}); });
  }
  [[nodiscard]] uint16_t port() const override { return port_; }
  [[nodiscard]] std::shared_ptr<TorchStore> with_prefix(const std::string& prefix) override {
    return std::make_shared<C10dStore>(c10::make_intrusive<c10d::PrefixStore>(prefix, store_), port_);
  }
  [[nodiscard]] const c10::intrusive_ptr<c10d::Store>& handle() const { return store_; }

 private:
  c10::intrusive_ptr<c10d::Store> store_;
  uint16_t port_;
};

ProcessGroup::Handle make_handle(const std::shared_ptr<TorchStore>& store, int rank, int size,
                                 const GlooOptions& options) {
  const auto& handle = static_cast<const C10dStore&>(*store).handle();
  const auto gloo_options = c10d::ProcessGroupGloo::Options::create(options.timeout);
  for (int peer = 0; peer < size; ++peer) gloo_options->global_ranks_in_group.push_back(static_cast<uint64_t>(peer));
  if (!options.interface.empty()) {
    gloo_options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(options.interface));
  } else if (!options.address.empty()) {
    gloo_options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(options.address));
  } else {
    gloo_options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
  }
  auto backend = c10::make_intrusive<c10d::ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>("gloo", handle),
                                                             rank, size, gloo_options);
  // A rank that leaves at once must not close connections that a slower one is still making: all or none have joined.
  backend->barrier()->wait();
  auto group = c10::make_intrusive<c10d::ProcessGroup>(handle, rank, size);
  group->setBackend(at::kCPU, c10d::ProcessGroup::BackendType::GLOO, backend);
  group->setDefaultBackend(c10d::ProcessGroup::BackendType::GLOO);
  group->setGroupName("deepscale");
  return group;
}

}  // namespace

std::shared_ptr<TorchStore> TorchStore::tcp(const TcpOptions& options) {
  return translated(fmt::format("store at {}:{}", options.host, options.port), [&] {
    c10d::TCPStoreOptions tcp;
    tcp.port = options.port;
    tcp.isServer = options.is_server;
    tcp.timeout = options.timeout;
    tcp.waitWorkers = options.wait_for_ranks > 0;
    if (options.wait_for_ranks > 0) tcp.numWorkers = static_cast<size_t>(options.wait_for_ranks);
    const auto store = c10::make_intrusive<c10d::TCPStore>(options.host, tcp);
    return std::static_pointer_cast<TorchStore>(std::make_shared<C10dStore>(store, store->getPort()));
  });
}

std::shared_ptr<TorchStore> TorchStore::in_memory() {
  return std::make_shared<C10dStore>(c10::make_intrusive<c10d::HashStore>(), 0);
}

HostRendezvous store_rendezvous(std::shared_ptr<TorchStore> store, int rank, int size) {
  // Copies of the callback count together.
  return [store = std::move(store), rank, size, round = std::make_shared<int>(0)](const std::string& mine) {
    const std::string prefix = fmt::format("exchange/{}/", (*round)++);
    store->set(prefix + std::to_string(rank), mine);
    std::vector<std::string> all;
    for (int peer = 0; peer < size; ++peer) all.push_back(store->get(prefix + std::to_string(peer)));
    return all;
  };
}

std::unique_ptr<ProcessGroup> make_gloo_group(const std::shared_ptr<TorchStore>& store, int rank, int size,
                                              const GlooOptions& options) {
  return translated(fmt::format("gloo: joining {} ranks as rank {}", size, rank),
                    [&] { return ProcessGroup::wrap(make_handle(store, rank, size, options), options.timeout); });
}

}  // namespace deepscale
