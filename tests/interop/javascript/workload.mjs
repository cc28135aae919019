// Asks for tokens with @azure/identity's WorkloadIdentityCredential through a token proxy. Requests and answers are
// those of ../python/workload.py. Run with the directory of the packages as working directory.
import { createInterface } from "node:readline";
import { WorkloadIdentityCredential } from "@azure/identity";

const scope = "https://vault.azure.net/.default";
const names = { client_id: "clientId", tenant_id: "tenantId", token_file: "tokenFilePath" };
const credentials = new Map();

function credentialFor(request) {
  const options = Object.fromEntries(
    Object.entries(names)
      .filter(([name]) => request[name])
      .map(([name, option]) => [option, request[name]]),
  );
  const key = JSON.stringify(options);
  if (request.new || !credentials.has(key))
    credentials.set(key, new WorkloadIdentityCredential({ enableAzureProxy: true, ...options }));
  return credentials.get(key);
}

for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  let answer;
  try {
    const options = { claims: request.claims, enableCae: request.cae };
    const token = await credentialFor(request).getToken(request.scope ?? scope, options);
    answer = { token: token.token, expires_on: Math.floor(token.expiresOnTimestamp / 1000) };
  } catch (error) {
    answer = { error: error.name, message: error.message };
  }
  console.log(JSON.stringify(answer));
}
