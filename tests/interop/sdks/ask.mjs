// Asks for tokens with @azure/identity: one JSON request a line on stdin, one JSON answer a line on stdout. See ask.py.
import { createInterface } from "node:readline";
import {
  ChainedTokenCredential,
  DefaultAzureCredential,
  ManagedIdentityCredential,
} from "@azure/identity";

const behind = {
  getToken: async () => ({
    token: "from the next credential of the chain",
    expiresOnTimestamp: Date.now() + 100_000,
  }),
};

const names = { client_id: "clientId", msi_res_id: "resourceId", object_id: "objectId" };

function credentialFor(asked) {
  if (asked.client === "node-default") return new DefaultAzureCredential();
  const options = Object.fromEntries(
    Object.entries(asked.options).map(([name, value]) => [names[name], value]),
  );
  const one = new ManagedIdentityCredential(options);
  return asked.chain ? new ChainedTokenCredential(one, behind) : one;
}

for await (const line of createInterface({ input: process.stdin })) {
  const asked = JSON.parse(line);
  let told;
  try {
    const token = await credentialFor(asked).getToken(`${asked.resource}/.default`);
    told = { token: token.token, expires_on: Math.floor(token.expiresOnTimestamp / 1000) };
  } catch (error) {
    told = { error: error.name, message: error.message };
  }
  console.log(JSON.stringify(told));
}
