import com.azure.core.credential.AccessToken;
import com.azure.core.credential.TokenCredential;
import com.azure.core.credential.TokenRequestContext;
import com.azure.core.util.BinaryData;
import com.azure.core.util.serializer.TypeReference;
import com.azure.identity.WorkloadIdentityCredentialBuilder;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Asks for tokens with azure-identity's WorkloadIdentityCredential through a token proxy. Requests and answers are those
 * of tests/interop/python/workload.py.
 */
public final class Workload {
    private static final String SCOPE = "https://vault.azure.net/.default";
    private static final TypeReference<Map<String, Object>> OBJECT = new TypeReference<>() { };
    private static final Map<List<String>, TokenCredential> CREDENTIALS = new HashMap<>();

    private Workload() {
    }

    /** Answers until standard input ends. */
    public static void main(String[] arguments) throws IOException {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            System.out.println(BinaryData.fromObject(answer(BinaryData.fromString(line).toObject(OBJECT))));
        }
        System.exit(0); // netty's threads would linger
    }

    private static Map<String, Object> answer(Map<String, Object> request) {
        try {
            TokenRequestContext context = new TokenRequestContext()
                .addScopes((String) request.getOrDefault("scope", SCOPE))
                .setCaeEnabled(Boolean.TRUE.equals(request.get("cae")));
            if (request.get("claims") != null) {
                context.setClaims((String) request.get("claims"));
            }
            AccessToken token = credentialFor(request).getTokenSync(context);
            return Map.of("token", token.getToken(), "expires_on", token.getExpiresAt().toEpochSecond());
        } catch (RuntimeException error) {
            return Map.of("error", error.getClass().getName(), "message", String.valueOf(error.getMessage()));
        }
    }

    private static TokenCredential credentialFor(Map<String, Object> request) {
        String clientId = (String) request.getOrDefault("client_id", "");
        String tenantId = (String) request.getOrDefault("tenant_id", "");
        String file = (String) request.getOrDefault("token_file", "");
        List<String> key = List.of(clientId, tenantId, file);
        if (Boolean.TRUE.equals(request.get("new")) || !CREDENTIALS.containsKey(key)) {
            WorkloadIdentityCredentialBuilder builder = new WorkloadIdentityCredentialBuilder().enableAzureProxy();
            if (!clientId.isEmpty()) {
                builder.clientId(clientId);
            }
            if (!tenantId.isEmpty()) {
                builder.tenantId(tenantId);
            }
            if (!file.isEmpty()) {
                builder.tokenFilePath(file);
            }
            CREDENTIALS.put(key, builder.build());
        }
        return CREDENTIALS.get(key);
    }
}
