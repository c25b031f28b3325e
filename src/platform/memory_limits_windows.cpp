#include <windows.h>
// After windows.h.
#include <psapi.h>

#include "platform/memory_limits.h"

namespace deepscale {

std::vector<MemoryLimit> memory_limits() {
  JOBOBJECT_EXTENDED_LIMIT_INFORMATION job = {};
  if (!QueryInformationJobObject(nullptr, JobObjectExtendedLimitInformation, &job, sizeof(job), nullptr)) return {};
  PROCESS_MEMORY_COUNTERS_EX mine = {};
  mine.cb = sizeof(mine);
  const bool known =
      GetProcessMemoryInfo(GetCurrentProcess(), reinterpret_cast<PROCESS_MEMORY_COUNTERS*>(&mine), sizeof(mine));
  const int64_t used = known ? static_cast<int64_t>(mine.PrivateUsage) : 0;
  std::vector<MemoryLimit> limits;
  const DWORD flags = job.BasicLimitInformation.LimitFlags;
  if ((flags & JOB_OBJECT_LIMIT_PROCESS_MEMORY) != 0) {
    limits.push_back({static_cast<int64_t>(job.ProcessMemoryLimit), used, "the job's limit for each process"});
  }
  if ((flags & JOB_OBJECT_LIMIT_JOB_MEMORY) != 0) {
    // Windows tells the job's peak, not its present use, which lies between this process's and the peak.
    limits.push_back({static_cast<int64_t>(job.JobMemoryLimit), static_cast<int64_t>(job.PeakJobMemoryUsed),
                      "the job's limit for all processes"});
  }
  return limits;
}

}  // namespace deepscale
