#include "launcher/agent_plan.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launcher/json_line.h"
#include "launcher/text.h"

namespace deepscale {
namespace {

using nlohmann::json;

json json_of(const LauncherOptions& options) {
  return {{"module", options.module},
          {"no_python", options.no_python},
          {"no_local_rank", options.no_local_rank},
          {"bind_cores", options.bind_cores},
          {"bind_core_list", options.bind_core_list},
          {"log_dir", options.log_dir},
          {"log_level", static_cast<int>(options.log_level)},
          {"venv_script", options.venv_script},
          {"master_port", options.master_port.value_or(0)},
          {"script", options.script},
          {"arguments", options.script_arguments}};
}

LauncherOptions options_of(const json& object) {
  LauncherOptions options;
  object.at("module").get_to(options.module);
  object.at("no_python").get_to(options.no_python);
  object.at("no_local_rank").get_to(options.no_local_rank);
  object.at("bind_cores").get_to(options.bind_cores);
  object.at("bind_core_list").get_to(options.bind_core_list);
  object.at("log_dir").get_to(options.log_dir);
  options.log_level = static_cast<LogLevel>(object.at("log_level").get<int>());
  object.at("venv_script").get_to(options.venv_script);
  const int port = object.at("master_port").get<int>();
  if (port != 0) options.master_port = port;
  object.at("script").get_to(options.script);
  object.at("arguments").get_to(options.script_arguments);
  return options;
}

}  // namespace

std::string encode_ticket(const AgentTicket& ticket) {
  return base64url(json_line({{"version", DEEPSCALE_VERSION},
                              {"run", ticket.run},
                              {"addresses", ticket.addresses},
                              {"port", ticket.port},
                              {"timeout", ticket.peer_timeout_s},
                              {"index", ticket.index},
                              {"one_rank", ticket.one_rank}}));
}

AgentTicket decode_ticket(const std::string& text) {
  const json object = json::parse(from_base64url(text), nullptr, /*allow_exceptions=*/false);
  DS_CHECK_AS(ConfigError, object.is_object(), "--agent: this is no ticket; the option is for the launcher itself");
  try {
    const auto version = object.at("version").get<std::string>();
    DS_CHECK_AS(ConfigError, version == DEEPSCALE_VERSION,
                "the launcher is version {}, and this machine has {}; install the same version everywhere", version,
                DEEPSCALE_VERSION);
    AgentTicket ticket;
    object.at("run").get_to(ticket.run);
    object.at("addresses").get_to(ticket.addresses);
    object.at("port").get_to(ticket.port);
    object.at("timeout").get_to(ticket.peer_timeout_s);
    object.at("index").get_to(ticket.index);
    object.at("one_rank").get_to(ticket.one_rank);
    return ticket;
  } catch (const json::exception& error) {
    ds_throw<ConfigError>("--agent: the ticket is incomplete: {}", error.what());
  }
}

std::string encode_plan(const AgentPlan& plan) {
  // Script, arguments and variables may hold any bytes, which JSON's text form could not carry.
  const json object = {{"slots", plan.slots},           {"first_rank", plan.first_rank},
                       {"restart", plan.restart_count}, {"kill_grace_ms", plan.kill_grace_ms},
                       {"python", plan.python},         {"directory", plan.working_directory},
                       {"variables", plan.variables},   {"options", json_of(plan.options)}};
  const std::vector<uint8_t> bytes = json::to_cbor(object);
  return base64url({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

AgentPlan decode_plan(const std::string& text) {
  json object;
  try {
    object = json::from_cbor(from_base64url(text), /*strict=*/true, /*allow_exceptions=*/false);
  } catch (const ConfigError&) {  // no base64
  }
  DS_CHECK_AS(ConfigError, object.is_object(), "the launcher sent no plan");
  try {
    AgentPlan plan;
    object.at("slots").get_to(plan.slots);
    object.at("first_rank").get_to(plan.first_rank);
    object.at("restart").get_to(plan.restart_count);
    object.at("kill_grace_ms").get_to(plan.kill_grace_ms);
    object.at("python").get_to(plan.python);
    object.at("directory").get_to(plan.working_directory);
    object.at("variables").get_to(plan.variables);
    plan.options = options_of(object.at("options"));
    return plan;
  } catch (const json::exception& error) {
    ds_throw<ConfigError>("the launcher sent an incomplete plan: {}", error.what());
  }
}

}  // namespace deepscale
