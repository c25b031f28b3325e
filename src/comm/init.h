// Finding the other ranks of this run without Python: what a launcher (deepspeed, torchrun, mpirun, srun) put into the
// environment, a TCP store at rank 0, then shared memory when all ranks are on one machine and torch's own Gloo when
// not.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "comm/communicator.h"

namespace deepscale {

/// Who and where this process is. Defaults describe a world of one.
struct RankEnvironment {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  std::string master_address = "127.0.0.1";
  uint16_t master_port = 29500;
  bool store_is_served = false;  ///< torchrun's agent already serves a store at the master's address
  int attempt = 0;               ///< restarts of this run so far; keeps the keys of two attempts apart
};

/// Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; where RANK and WORLD_SIZE are missing, Open MPI's or
/// Slurm's names; a world of one when there is none of them. Throws ConfigError for values that contradict each other
/// or are missing, naming the variable. `read` gives a variable's value (tests pass a table).
RankEnvironment read_rank_environment(const std::function<std::optional<std::string>(const std::string& name)>& read);

/// Collective over the run's ranks. Throws ConfigError, CommError, IoError.
Communicator make_world(const RankEnvironment& environment, const InitOptions& options = {});

}  // namespace deepscale
