// The smallest good call straight to a service: a deadline, a key, a typed refusal.
//
//   FINITY_SERVICE_KEY=... node examples/node_client/record_usage.js USER_ID [CREDITS]

import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const ADDRESS = process.env.FINITY_USAGE_ADDRESS ?? "127.0.0.1:50053";
const KEY = process.env.FINITY_SERVICE_KEY ?? "";
const DEADLINE_MS = 2_000;

// The compiled contracts: nothing they import needs to be on this disk.
const contracts = protoLoader.loadFileDescriptorSetFromBuffer(
  readFileSync(new URL("../../gen/finity.binpb", import.meta.url)),
  // Without `longs: String`, credits above 2^53 lose digits.
  { keepCase: true, longs: String, enums: String, defaults: true },
);
const { finity } = grpc.loadPackageDefinition(contracts);

function main(user_id, credits) {
  const usage = new finity.usage.v1.UsageService(ADDRESS, grpc.credentials.createInsecure());
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${KEY}`);
  // Made once per tool call: sending the same event again spends nothing again.
  const event = { event_id: uuid7(), user_id, tool_name: "example.node", credits };

  usage.RecordUsage({ event }, metadata, { deadline: Date.now() + DEADLINE_MS }, (error, answer) => {
    if (error) {
      console.error(refusal(error));
      process.exitCode = 1;
    } else {
      console.log(`recorded ${event.event_id}: ${credits} spent, ${answer.available} left`);
    }
    usage.close();
  });
}

/** Returns what a program decides by: the code, the reason and its metadata. */
function refusal(error) {
  const [bytes] = error.metadata.get("grpc-status-details-bin");
  const status = bytes && contracts["google.rpc.Status"].deserialize(bytes);
  const detail = status?.details.find((any) => any.type_url.endsWith("/google.rpc.ErrorInfo"));
  if (!detail) return `failed: ${grpc.status[error.code]}: ${error.details}`;
  const info = contracts["google.rpc.ErrorInfo"].deserialize(detail.value);
  // A map comes out of a descriptor set as what it is on the wire: a list of entries.
  const facts = info.metadata.map(({ key, value }) => ` ${key}=${value}`).sort();
  return `refused: ${grpc.status[error.code]} ${info.reason}${facts.join("")}`;
}

/** Returns a UUIDv7 (RFC 9562): 48 bits of milliseconds, the rest random. */
function uuid7() {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(Date.now(), 0, 6);
  bytes[6] = (bytes[6] & 0x0f) | 0x70;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return bytes.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

main(process.argv[2], process.argv[3] ?? "1");
