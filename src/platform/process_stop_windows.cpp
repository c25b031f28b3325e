#include <mutex>

#include "base/error.h"
#include "platform/process_internal_windows.h"

namespace deepscale {
namespace {

std::wstring event_name(DWORD process, StopSignal signal) {
  return to_wide(
      fmt::format("Local\\deepscale-{}-{}", signal == StopSignal::kInterrupt ? "interrupt" : "terminate", process));
}

/// The one who gets console events. The system's handler is a function of the process and is given no context, as
/// signals are on Linux, so this cannot belong to an object.
struct ConsoleListener {
  std::mutex mutex;
  const StopRequests::Callback* callback = nullptr;
};

ConsoleListener& console_listener() {
  static ConsoleListener listener;
  return listener;
}

BOOL WINAPI on_console_event(DWORD event) {
  const bool goes_away = event == CTRL_CLOSE_EVENT || event == CTRL_LOGOFF_EVENT || event == CTRL_SHUTDOWN_EVENT;
  {
    ConsoleListener& listener = console_listener();
    const std::lock_guard lock(listener.mutex);
    if (listener.callback == nullptr) return FALSE;
    // Ctrl-C does not reach processes that lead a group, and those that we start do.
    (*listener.callback)(event == CTRL_C_EVENT ? kInterruptSignal : kTerminateSignal, goes_away);
  }
  // The system ends this process as soon as the handler of such an event returns, and after 5 s in any case.
  if (goes_away) Sleep(10'000);
  return TRUE;
}

}  // namespace

struct StopRequests::Impl {
  /// One event by which other processes ask.
  struct Request {
    Impl* owner = nullptr;
    int signal = 0;
    Handle event;
    HANDLE registration = nullptr;
  };

  Callback callback;
  Request requests[2];

  static void CALLBACK on_request(void* context, BOOLEAN /*timed_out*/) {
    const auto* const request = static_cast<const Request*>(context);
    request->owner->callback(request->signal, false);
  }
};

StopRequests::StopRequests(Callback callback) : impl_(std::make_unique<Impl>()) {
  impl_->callback = std::move(callback);
  const std::shared_ptr<void> descriptor = user_only_descriptor();
  SECURITY_ATTRIBUTES attributes = {sizeof(attributes), descriptor.get(), FALSE};
  for (const StopSignal signal : {StopSignal::kInterrupt, StopSignal::kTerminate}) {
    const bool interrupt = signal == StopSignal::kInterrupt;
    Impl::Request& request = impl_->requests[interrupt ? 0 : 1];
    request.owner = impl_.get();
    request.signal = interrupt ? kInterruptSignal : kTerminateSignal;
    request.event = Handle(CreateEventW(descriptor != nullptr ? &attributes : nullptr, FALSE, FALSE,
                                        event_name(GetCurrentProcessId(), signal).c_str()));
    if (request.event) {
      RegisterWaitForSingleObject(&request.registration, request.event.get(), &Impl::on_request, &request, INFINITE,
                                  WT_EXECUTEDEFAULT);
    }
  }
  {
    ConsoleListener& listener = console_listener();
    const std::lock_guard lock(listener.mutex);
    listener.callback = &impl_->callback;
  }
  // A process that leads a group starts with Ctrl-C switched off; a stop request must reach us all the same.
  SetConsoleCtrlHandler(nullptr, FALSE);
  SetConsoleCtrlHandler(&on_console_event, TRUE);
}

StopRequests::~StopRequests() {
  SetConsoleCtrlHandler(&on_console_event, FALSE);
  {
    ConsoleListener& listener = console_listener();
    const std::lock_guard lock(listener.mutex);
    listener.callback = nullptr;
  }
  for (Impl::Request& request : impl_->requests) {
    if (request.registration != nullptr) UnregisterWaitEx(request.registration, INVALID_HANDLE_VALUE);
  }
}

bool ask_to_stop(DWORD process, StopSignal signal) {
  const Handle event(OpenEventW(EVENT_MODIFY_STATE, FALSE, event_name(process, signal).c_str()));
  if (event) return SetEvent(event.get()) != 0;
  if (GetConsoleCP() != 0) return GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, process) != 0;
  // We have no console, so the process was given a hidden one of its own: visit it.
  if (!AttachConsole(process)) return false;
  const bool sent = GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, process) != 0;
  FreeConsole();
  return sent;
}

}  // namespace deepscale
