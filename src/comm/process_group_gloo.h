// What a C++ program without Python needs to find its peers: a key-value store and torch's own Gloo over it.
// Throws CommError for whatever torch reports. Threads: a store may be used by any thread, a group by one at a time.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "comm/host_rendezvous.h"
#include "comm/process_group.h"

namespace deepscale {

class TorchStore {
 public:
  struct TcpOptions {
    std::string host = "127.0.0.1";
    uint16_t port = 0;       ///< a server with port 0 takes a free one; see port()
    bool is_server = false;  ///< this process serves the store (usually: rank 0)
    int wait_for_ranks = 0;  ///< the constructor returns when so many have come; 0: at once
    std::chrono::milliseconds timeout = std::chrono::minutes(5);
  };
  static std::shared_ptr<TorchStore> tcp(const TcpOptions& options);
  /// For ranks that are threads of one process.
  static std::shared_ptr<TorchStore> in_memory();
  virtual ~TorchStore() = default;

  virtual void set(const std::string& key, const std::string& value) = 0;
  /// Waits for the key, at most for the store's timeout.
  virtual std::string get(const std::string& key) = 0;
  [[nodiscard]] virtual bool has(const std::string& key) = 0;
  /// The store's own, for tcp().
  [[nodiscard]] virtual uint16_t port() const = 0;
  /// The same store with every key behind `prefix/`.
  [[nodiscard]] virtual std::shared_ptr<TorchStore> with_prefix(const std::string& prefix) = 0;
};

/// All-gather of byte strings through a store that all ranks see. Several exchanges may follow each other.
HostRendezvous store_rendezvous(std::shared_ptr<TorchStore> store, int rank, int size);

struct GlooOptions {
  std::chrono::milliseconds timeout = std::chrono::minutes(10);
  std::string interface;  ///< network interface; wins over address
  std::string address;    ///< this machine's address towards its peers; empty: what its host name resolves to
};
/// Collective over `size` ranks that see one store. Serves CPU tensors. When ranks are threads of one process, set
/// TORCH_FR_BUFFER_SIZE=0 before the first group: torch's flight recorder (2.11) is not safe among them.
std::unique_ptr<ProcessGroup> make_gloo_group(const std::shared_ptr<TorchStore>& store, int rank, int size,
                                              const GlooOptions& options = {});

}  // namespace deepscale
