"""A server of one tool, spoken to over its standard streams (modelcontextprotocol.io)."""

import json
import sys

TOOL = {
    "name": "tell_hour",
    "description": "Tells the hour",
    "inputSchema": {"type": "object", "properties": {"zone": {"type": "string"}}},
}


def answer(method: str, given: dict[str, object]) -> dict[str, object]:
    if method == "initialize":
        version = given["protocolVersion"]
        about = {"name": "clock", "version": "1"}
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": f"it is noon: {given['arguments']}"}]}
    return {}


for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        result = answer(asked["method"], asked.get("params", {}))
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
