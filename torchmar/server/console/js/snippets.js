// The same call from a terminal or a program.

import { useState } from "preact/hooks";

import { inputOf } from "./form.js";
import { Copy, html, Segments } from "./ui.js";

const LONGEST = 600; // characters of a body that stands in a command

export function Snippets({ name, version, isDefault, input, form, server, explain }) {
  const [way, setWay] = useState("curl");
  const request = inputOf(input);
  const path = `${encodeURIComponent(name)}${isDefault ? "" : `/${encodeURIComponent(version)}`}`;
  const made = WAYS[way]({ name, version, isDefault, path, request, server, form, explain: explain && form.explains !== false });
  return html`
    <section class="card snippets" aria-labelledby="snippets">
      <div class="card-head">
        <h2 id="snippets">The same call from elsewhere</h2>
        <${Segments}
          label="Language"
          options=${[["curl", "curl"], ["python", "Python"], ["grpc", "gRPC"]]}
          value=${way}
          onChange=${setWay}
        />
      </div>
      <div class="code-box">
        <pre class="code" tabindex="0">${made}</pre>
        <${Copy} text=${made} />
      </div>
    </section>
  `;
}

const quote = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function bodyOf(request) {
  if (!request) return { text: "", file: "INPUT" };
  if (typeof request.body === "string") {
    return request.body.length <= LONGEST ? { text: request.body } : { file: request.type.startsWith("text/") ? "input.txt" : "input.json" };
  }
  return { file: request.name || "input" };
}

function curl({ path, request, server, explain, form }) {
  const { text, file } = bodyOf(request);
  const lines = [];
  if (server.tokens) {
    lines.push(
      `TOKEN=$(python3 -c "import json; print(json.load(open('.torchmar/key_file.json'))['inference']['key'])")`,
    );
  }
  const common = [
    ...(server.tokens ? [`-H "Authorization: Bearer $TOKEN"`] : []),
    ...(request?.type ? [`-H ${quote(`Content-Type: ${request.type}`)}`] : []),
    `--data-binary ${file ? `@${quote(file)}` : quote(text)}`,
  ];
  const call = (verb, more = []) =>
    ["curl -s", ...common, ...more, quote(`${server.addresses.inference}/${verb}/${path}`)].join(" \\\n  ");
  lines.push(call("predictions"));
  if (explain && form.kind === "image") lines.push("", call("explanations", [`-H "Accept: image/png" -o explanation.png`]));
  else if (explain) lines.push("", call("explanations"));
  return lines.join("\n");
}

function python({ name, version, isDefault, request, explain }) {
  const { text, file } = bodyOf(request);
  const json = request?.type === "application/json";
  const value = file ? `Path(${literal(file)})` : json ? pythonValue(JSON.parse(text)) : literal(text);
  const more = isDefault ? "" : `, version=${literal(version)}`;
  const lines = [...(file ? ["from pathlib import Path", ""] : []), "import torchmar", ""];
  lines.push("with torchmar.InferenceClient() as client:  # finds the server of .torchmar and its token");
  lines.push(`    print(client.predict(${literal(name)}, ${value}${more}))`);
  if (explain) lines.push(`    print(client.explain(${literal(name)}, ${value}${more}))`);
  return lines.join("\n");
}

const literal = (text) => JSON.stringify(text);

function pythonValue(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([key, one]) => `${literal(key)}: ${pythonValue(one)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

function grpc({ name, version, isDefault, request, server }) {
  const { text, file } = bodyOf(request);
  const value = file ? `open(${literal(file)}, "rb").read()` : `${literal(text)}.encode()`;
  return [
    "# pip install 'torchmar[grpc]'; the messages are TorchServe's own.",
    "import grpc",
    "from torchmar.grpc.wire import inference_pb2, inference_pb2_grpc",
    "",
    `channel = grpc.insecure_channel(${literal(server.grpc.inference)})`,
    "stub = inference_pb2_grpc.InferenceAPIsServiceStub(channel)",
    "request = inference_pb2.PredictionsRequest(",
    `    model_name=${literal(name)},`,
    ...(isDefault ? [] : [`    model_version=${literal(version)},`]),
    `    input={"data": ${value}},`,
    ")",
    ...(server.tokens ? [`metadata = [("authorization", "Bearer TOKEN")]  # inference, of .torchmar/key_file.json`] : []),
    `print(stub.Predictions(request${server.tokens ? ", metadata=metadata" : ""}).prediction)`,
  ].join("\n");
}

const WAYS = { curl, python, grpc };
