// Asks for a token with @azure/identity's ManagedIdentityCredential and DefaultAzureCredential: see managed.py.
import { DefaultAzureCredential, ManagedIdentityCredential } from "@azure/identity";

async function answer(credential) {
  try {
    return { token: (await credential.getToken("https://vault.azure.net/.default")).token };
  } catch (error) {
    return { error: error.name, message: error.message };
  }
}

const selector = process.env.SELECTOR;
const managed = selector ? new ManagedIdentityCredential(selector) : new ManagedIdentityCredential();
const answers = { managed: await answer(managed), default: await answer(new DefaultAzureCredential()) };
console.log(JSON.stringify(answers));
process.exit(0);
