#include <algorithm>
#include <array>
#include <cwctype>
#include <memory>
#include <thread>

#include "base/error.h"
#include "platform/command_line.h"
#include "platform/machine.h"
#include "platform/process_internal_windows.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

constexpr DWORD kControlCExit = 0xC000013A;  // STATUS_CONTROL_C_EXIT
constexpr DWORD kFirstErrorStatus = 0xC0000000;

/// The attributes of a process to start; see InitializeProcThreadAttributeList.
class StartAttributes {
 public:
  StartAttributes() {
    SIZE_T bytes = 0;
    InitializeProcThreadAttributeList(nullptr, kCount, 0, &bytes);
    memory_ = std::make_unique<char[]>(bytes);
    initialized_ = InitializeProcThreadAttributeList(list(), kCount, 0, &bytes) != 0;
  }
  ~StartAttributes() {
    if (initialized_) DeleteProcThreadAttributeList(list());
  }
  StartAttributes(const StartAttributes&) = delete;
  StartAttributes& operator=(const StartAttributes&) = delete;

  /// The value is not copied.
  bool set(DWORD_PTR attribute, void* value, size_t bytes) {
    return initialized_ && UpdateProcThreadAttribute(list(), 0, attribute, value, bytes, nullptr, nullptr) != 0;
  }
  LPPROC_THREAD_ATTRIBUTE_LIST list() { return reinterpret_cast<LPPROC_THREAD_ATTRIBUTE_LIST>(memory_.get()); }

 private:
  static constexpr DWORD kCount = 3;
  std::unique_ptr<char[]> memory_;
  bool initialized_ = false;
};

std::wstring environment_block(const std::vector<std::string>& variables) {
  std::vector<std::wstring> entries;
  for (const std::string& variable : variables) entries.push_back(to_wide(variable));
  // Windows looks variables up by bisection, without regard to case.
  std::sort(entries.begin(), entries.end(), [](const std::wstring& a, const std::wstring& b) {
    return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end(), [](wchar_t x, wchar_t y) {
      return std::towupper(static_cast<wint_t>(x)) < std::towupper(static_cast<wint_t>(y));
    });
  });
  std::wstring block;
  for (const std::wstring& entry : entries) block += entry + L'\0';
  if (block.empty()) block += L'\0';
  return block + L'\0';
}

/// A copy that a started process inherits; none of a handle that is none.
Handle inheritable(HANDLE handle) {
  HANDLE copy = nullptr;
  HANDLE const self = GetCurrentProcess();
  if (handle == nullptr || handle == INVALID_HANDLE_VALUE ||
      !DuplicateHandle(self, handle, self, &copy, 0, TRUE, DUPLICATE_SAME_ACCESS)) {
    return {};
  }
  return Handle(copy);
}

/// The end of a pipe from which a started process reads this text.
Handle pipe_with(const std::string& text) {
  DS_CHECK_AS(IoError, text.size() <= 4096, "the input of a process may have 4096 bytes, not {}", text.size());
  HANDLE ends[2] = {};
  // As large as the text, so that it takes all of it without a reader.
  DS_CHECK_AS(IoError, CreatePipe(&ends[0], &ends[1], nullptr, static_cast<DWORD>(text.size())),
              "cannot make a pipe: {}", error_text());
  Handle reader(ends[0]);
  const Handle writer(ends[1]);
  DWORD wrote = 0;
  DS_CHECK_AS(
      IoError,
      WriteFile(writer.get(), text.data(), static_cast<DWORD>(text.size()), &wrote, nullptr) && wrote == text.size(),
      "cannot write into a pipe: {}", error_text());
  return reader;
}

std::wstring system_program(const wchar_t* name) {
  wchar_t folder[MAX_PATH] = {};
  GetSystemDirectoryW(folder, MAX_PATH);
  return std::wstring(folder) + L"\\" + name;
}

/// Whether this is what the system started to show the console of a process. It is in that process's job and ends with
/// its last client; wine's stays when the client was ended before it had connected.
bool is_console_host(DWORD process) {
  const Handle handle(OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, FALSE, process));
  std::wstring image(1 << 15, L'\0');
  auto length = static_cast<DWORD>(image.size());
  if (!handle || !QueryFullProcessImageNameW(handle.get(), 0, image.data(), &length)) return false;
  return CompareStringOrdinal(image.data(), static_cast<int>(length), system_program(L"conhost.exe").c_str(), -1,
                              TRUE) == CSTR_EQUAL;
}

/// The CPUs of one processor group that a process is to run on.
GROUP_AFFINITY affinity_of(const ProcessSpec& spec) {
  GROUP_AFFINITY affinity = {};
  affinity.Group = static_cast<WORD>(spec.cpus.front() / 64);
  for (const int cpu : spec.cpus) {
    DS_CHECK_AS(IoError, cpu / 64 == affinity.Group,
                "cannot start \"{}\" on CPUs {} and {}: on Windows the CPUs of a process lie in one group of 64; give "
                "each process fewer",
                spec.arguments[0], spec.cpus.front(), cpu);
    affinity.Mask |= KAFFINITY{1} << (cpu % 64);
  }
  return affinity;
}

/// What CreateProcess is to run.
struct Program {
  std::wstring path;
  std::wstring line;
};

Program resolve(const ProcessSpec& spec) {
  DS_CHECK_AS(IoError, !spec.arguments.empty(), "cannot start a process without a program name");
  const auto found = find_program(spec.arguments[0]);
  DS_CHECK_AS(IoError, found.has_value(), "cannot start \"{}\": there is no such executable file{}", spec.arguments[0],
              spec.arguments[0].find_first_of("/\\") == std::string::npos ? " in PATH" : "");
  std::vector<std::string> arguments = spec.arguments;
  arguments[0] = to_utf8(found->native());
  if (!is_batch_file(arguments[0])) return {found->native(), to_wide(command_line(arguments))};
  const std::wstring cmd = system_program(L"cmd.exe");
  return {cmd, to_wide(batch_command_line(to_utf8(cmd), arguments))};
}

}  // namespace

ProcessId current_process() {
  return GetCurrentProcessId();
}

ExitStatus exit_status_of(DWORD exit_code) {
  ExitStatus status;
  if (exit_code == kControlCExit) {
    status.signal = kInterruptSignal;
  } else {
    status.code = static_cast<int>(exit_code);
  }
  return status;
}

std::string ExitStatus::describe() const {
  if (signal != 0) return "ended by Ctrl-C or Ctrl-Break";
  const auto number = static_cast<DWORD>(code);
  if (number == kKilledExitCode) return fmt::format("exit code {} (ended by force)", code);
  if (number < kFirstErrorStatus) return fmt::format("exit code {}", code);
  switch (number) {
    case EXCEPTION_ACCESS_VIOLATION:
      return fmt::format("exit code {:#x} (access violation)", number);
    case EXCEPTION_STACK_OVERFLOW:
      return fmt::format("exit code {:#x} (stack overflow)", number);
    case EXCEPTION_ILLEGAL_INSTRUCTION:
      return fmt::format("exit code {:#x} (illegal instruction)", number);
    case 0xC0000135:
      return fmt::format("exit code {:#x} (a DLL was not found)", number);
    default:
      return fmt::format("exit code {:#x}", number);
  }
}

Handle make_kill_on_close_job() {
  Handle job(CreateJobObjectW(nullptr, nullptr));
  JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits = {};
  limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE;
  DS_CHECK_AS(IoError,
              job && SetInformationJobObject(job.get(), JobObjectExtendedLimitInformation, &limits, sizeof(limits)),
              "cannot make a job object: {}", error_text());
  return job;
}

bool has_processes(HANDLE job) {
  constexpr DWORD kMostProcesses = 1 << 16;
  // Numbers in front of a list of any length.
  std::vector<ULONG_PTR> memory(64);
  auto* list = reinterpret_cast<JOBOBJECT_BASIC_PROCESS_ID_LIST*>(memory.data());
  const auto query = [&] {
    return QueryInformationJobObject(job, JobObjectBasicProcessIdList, list,
                                     static_cast<DWORD>(memory.size() * sizeof(ULONG_PTR)), nullptr) != 0;
  };
  while (!query() && GetLastError() == ERROR_MORE_DATA && memory.size() < kMostProcesses) {
    memory.resize(memory.size() * 2);
    list = reinterpret_cast<JOBOBJECT_BASIC_PROCESS_ID_LIST*>(memory.data());
  }
  // The job may count a process for a moment after its end has been reported.
  return std::any_of(list->ProcessIdList, list->ProcessIdList + list->NumberOfProcessIdsInList, [](ULONG_PTR process) {
    return is_alive({static_cast<int64_t>(process), 0}) && !is_console_host(static_cast<DWORD>(process));
  });
}

void kill_job(HANDLE job, std::chrono::milliseconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  TerminateJobObject(job, kKilledExitCode);
  while (has_processes(job) && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    TerminateJobObject(job, kKilledExitCode);
  }
}

Handle open_log_file(const std::string& path) {
  Handle file(CreateFileW(wide_path(path).c_str(), FILE_APPEND_DATA | SYNCHRONIZE,
                          FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr, OPEN_ALWAYS,
                          FILE_ATTRIBUTE_NORMAL, nullptr));
  DS_CHECK_AS(IoError, file, "cannot write the log file {}: {}", path, error_text());
  return file;
}

StartedProcess spawn_process(const ProcessSpec& spec, const OutputHandles& outputs, HANDLE job) {
  Program program = resolve(spec);
  const auto ours_unless = [](HANDLE handle, DWORD which) { return handle != nullptr ? handle : GetStdHandle(which); };
  const Handle pipe = spec.input.empty() ? Handle() : pipe_with(spec.input);
  const Handle input = inheritable(pipe ? pipe.get() : GetStdHandle(STD_INPUT_HANDLE));
  const Handle output = inheritable(ours_unless(outputs.output, STD_OUTPUT_HANDLE));
  const Handle error = inheritable(ours_unless(outputs.error, STD_ERROR_HANDLE));
  std::vector<HANDLE> inherited;
  for (const Handle* handle : {&input, &output, &error}) {
    if (*handle) inherited.push_back(handle->get());
  }

  StartAttributes attributes;
  STARTUPINFOEXW start = {};
  start.StartupInfo.cb = sizeof(start);
  start.StartupInfo.dwFlags = STARTF_USESTDHANDLES;
  start.StartupInfo.hStdInput = input.get();
  start.StartupInfo.hStdOutput = output.get();
  start.StartupInfo.hStdError = error.get();
  start.lpAttributeList = attributes.list();
  if (!inherited.empty()) {
    DS_CHECK_AS(IoError,
                attributes.set(PROC_THREAD_ATTRIBUTE_HANDLE_LIST, inherited.data(), inherited.size() * sizeof(HANDLE)),
                "cannot start \"{}\": {}", spec.arguments[0], error_text());
  }
  // In the job from its first moment: if we are killed now, it goes too. Without that attribute it joins below.
  attributes.set(PROC_THREAD_ATTRIBUTE_JOB_LIST, &job, sizeof(job));
  GROUP_AFFINITY affinity = {};
  if (!spec.cpus.empty()) {
    affinity = affinity_of(spec);
    if (affinity.Group != 0) attributes.set(PROC_THREAD_ATTRIBUTE_GROUP_AFFINITY, &affinity, sizeof(affinity));
  }

  std::wstring block = environment_block(spec.environment);
  const bool has_console = GetConsoleCP() != 0;  // without one, no window of the child's is to open
  const DWORD flags = CREATE_SUSPENDED | CREATE_NEW_PROCESS_GROUP | CREATE_UNICODE_ENVIRONMENT |
                      EXTENDED_STARTUPINFO_PRESENT | (has_console ? 0 : CREATE_NO_WINDOW);
  PROCESS_INFORMATION made = {};
  const bool started = CreateProcessW(program.path.c_str(), program.line.data(), nullptr, nullptr, !inherited.empty(),
                                      flags, block.data(), nullptr, &start.StartupInfo, &made) != 0;
  DS_CHECK_AS(IoError, started, "cannot start \"{}\": {}", to_utf8(program.path), error_text());
  StartedProcess result{Handle(made.hProcess), made.dwProcessId};
  const Handle thread(made.hThread);
  BOOL in_job = FALSE;
  const bool joined =
      (IsProcessInJob(made.hProcess, job, &in_job) && in_job) || AssignProcessToJobObject(job, made.hProcess) != 0;
  const bool placed =
      spec.cpus.empty() || affinity.Group != 0 || SetProcessAffinityMask(made.hProcess, affinity.Mask) != 0;
  if (!joined || !placed) {
    const std::string reason = error_text();
    TerminateProcess(made.hProcess, kKilledExitCode);
    ds_throw<IoError>("cannot start \"{}\": {}", to_utf8(program.path), reason);
  }
  ResumeThread(thread.get());
  return result;
}

ProcessOutput run_and_read(const ProcessSpec& spec, const std::string& error_file) {
  HANDLE ends[2] = {};
  DS_CHECK_AS(IoError, CreatePipe(&ends[0], &ends[1], nullptr, 0), "cannot make a pipe: {}", error_text());
  const Handle reader(ends[0]);
  Handle writer(ends[1]);
  const Handle job = make_kill_on_close_job();
  Handle error;
  if (!error_file.empty()) {
    error = Handle(CreateFileW(wide_path(error_file).c_str(), GENERIC_WRITE, FILE_SHARE_READ, nullptr, CREATE_ALWAYS,
                               FILE_ATTRIBUTE_NORMAL, nullptr));
  }
  const StartedProcess started = spawn_process(spec, {writer.get(), error.get()}, job.get());
  writer.reset();
  ProcessOutput result;
  std::array<char, 4096> buffer;
  for (DWORD got = 0; ReadFile(reader.get(), buffer.data(), buffer.size(), &got, nullptr);) {
    result.output.append(buffer.data(), got);
  }
  // Text, in which Windows' C library writes a carriage return before each line end.
  for (size_t at = result.output.find("\r\n"); at != std::string::npos; at = result.output.find("\r\n", at)) {
    result.output.erase(at, 1);
  }
  WaitForSingleObject(started.process.get(), INFINITE);
  DWORD code = 0;
  GetExitCodeProcess(started.process.get(), &code);
  result.status = exit_status_of(code);
  return result;
}

ExitStatus run_guarded(const std::function<int()>& body) {
  ExitStatus status;
  status.code = body();
  return status;
}

}  // namespace deepscale
