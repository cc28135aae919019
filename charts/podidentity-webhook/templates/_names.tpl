{{/* azure-workload-identity's selector, which cannot be changed once installed: an upgrade of its release goes on. */}}
{{- define "podidentity-webhook.selectors" -}}
app: workload-identity-webhook
azure-workload-identity.io/system: "true"
chart: workload-identity-webhook
release: {{ .Release.Name | quote }}
{{- end -}}

{{- define "podidentity-webhook.labels" -}}
{{ include "podidentity-webhook.selectors" . }}
app.kubernetes.io/name: podidentity-webhook
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The environment, as a dict in JSON: the tenant, the cloud, and where the broker is. */}}
{{- define "podidentity-webhook.environment" -}}
{{- $endpoint := .Values.customTokenEndpoint -}}
{{- $selector := $endpoint.azureKubernetesCACTBLabelSelector | default "" -}}
{{- $variables := dict
  "AZURE_TENANT_ID" .Values.azureTenantID
  "AZURE_ENVIRONMENT" .Values.azureEnvironment
  "AZURE_KUBERNETES_TOKEN_PROXY" $endpoint.azureKubernetesTokenProxy
  "AZURE_KUBERNETES_SNI_NAME" $endpoint.azureKubernetesSniName
  "AZURE_KUBERNETES_CA_DATA" $endpoint.azureKubernetesCaData
  "AZURE_KUBERNETES_CA_CONFIGMAP_NAME" $endpoint.azureKubernetesCAConfigMapName
  "AZURE_KUBERNETES_CA_CTB_SIGNER_NAME" $endpoint.azureKubernetesCACTBSignerName
  "AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR" (kindIs "string" $selector | ternary $selector ($selector | toJson))
-}}
{{- range $name, $value := $variables }}
{{- if not $value }}
{{- $_ := unset $variables $name }}
{{- end }}
{{- end }}
{{- $variables | toJson -}}
{{- end -}}

{{/* What a schema cannot say. */}}
{{- define "podidentity-webhook.check" -}}
{{- with .Values.customTokenEndpoint -}}
{{- if ne (empty .annotationSuffix) (empty .audience) -}}
{{- fail "customTokenEndpoint: annotationSuffix and audience belong together; give both or neither" -}}
{{- end -}}
{{- $sources := compact (list .azureKubernetesCaData .azureKubernetesCAConfigMapName .azureKubernetesCACTBSignerName) -}}
{{- if and .azureKubernetesTokenProxy (ne (len $sources) 1) -}}
{{- fail "customTokenEndpoint: the token proxy needs one source of its CA; give exactly one of azureKubernetesCaData, azureKubernetesCAConfigMapName and azureKubernetesCACTBSignerName" -}}
{{- end -}}
{{- if and .annotationSuffix (not .azureKubernetesTokenProxy) -}}
{{- fail "customTokenEndpoint: annotationSuffix needs azureKubernetesTokenProxy, the broker's https:// address; give both" -}}
{{- end -}}
{{- end -}}
{{- end -}}
